"""`sternum doctor` finds what is wrong, with real causes as far as a test machine has them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.versions import versions
from tests.support.network_namespaces import NODES, PORT, Network
from tests.support.shims import clock_30_s_ahead, no_locks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DOCTOR = [sys.executable, "-m", "launch.doctor", "--json=true"]
Report = dict[str, Any]


def start(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def report_of(process: "subprocess.Popen[str]") -> Report | None:
    """Return the report of an examination, whose exit code must say whether something is wrong; None without one."""
    printed, _ = process.communicate(timeout=1500)
    if not printed:
        return None
    report: Report = json.loads(printed)
    assert process.returncode == (1 if report["wrong"] else 0)
    return report


def examined_alone(command: Sequence[str], environment: Mapping[str, str]) -> Report:
    report = report_of(start(command, environment))
    assert report is not None
    return report


def wrong_in(report: Report) -> list[tuple[str, str]]:
    """Return check and text of all that is wrong."""
    findings = [*report["together"], *(one for machine in report["machines"] for one in machine["findings"])]
    wrong = [finding for finding in findings if finding["mend"] is not None and not finding["is_warning"]]
    assert report["wrong"] == len(wrong)
    return [(finding["check"], finding["text"]) for finding in wrong]


def test_a_healthy_machine_has_nothing_wrong(tmp_path: Path) -> None:
    report = examined_alone([*DOCTOR, f"--folders=[{tmp_path}]"], {})
    assert wrong_in(report) == []
    [machine] = report["machines"]
    assert [finding["check"] for finding in machine["findings"]] == [
        "versions",
        "GPUs",
        "memory",
        "shared memory",
        "open files",
        "folders",
    ]


def test_a_file_system_without_locks_is_found(tmp_path: Path) -> None:
    report = examined_alone([*DOCTOR, f"--folders=[{tmp_path}]"], no_locks(tmp_path))
    assert wrong_in(report) == [("folders", f"the disk of {tmp_path} cannot lock files: No locks available")]


def test_a_machine_that_only_packs_is_examined_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from launch.cli import main; sys.exit(main(sys.argv[1:]))"
    report = examined_alone([sys.executable, "-c", code, "doctor", "--json=true", f"--folders=[{tmp_path}]"], {})
    assert wrong_in(report) == []
    [machine] = report["machines"]
    assert "not looked at without torch" in machine["findings"][1]["text"]


def test_a_read_only_store_is_found(tmp_path: Path) -> None:
    """Of the kinds of object store, a mounted disk is the one that this machine can make read-only."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    read_only = f'mount -t tmpfs -o ro none {tmp_path} && exec "$@"'
    folders = f"--folders=[{tmp_path}/runs,file://{tmp_path}/shards]"
    report = examined_alone(["unshare", "-m", "sh", "-c", read_only, "sh", *DOCTOR, folders], {})
    assert [check for check, _ in wrong_in(report)] == ["folders", "object stores"]
    assert all("read-only" in text.lower() for _, text in wrong_in(report))


def test_too_few_open_files_and_too_little_shared_memory_are_found() -> None:
    if os.geteuid() != 0:
        pytest.skip("a small /dev/shm needs root")
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && ulimit -Sn 512 && exec "$@"'
    report = examined_alone(["unshare", "-m", "sh", "-c", small, "sh", *DOCTOR], {})
    assert wrong_in(report) == [
        ("shared memory", "/dev/shm has 67 MB, less than the 1,074 MB that NCCL and Ray may need"),
        ("open files", "a process may open 512 files, fewer than 1,024"),
    ]


def test_the_plan_of_a_pretraining_is_examined_too(simulated_shards: Path, tmp_path: Path) -> None:
    command = ["sternum", "pretrain", str(tmp_path / "run"), "--config=cpu", f"--data.shards=[{simulated_shards}]"]
    command += ["--optim.warmup_steps=0"]  # the run is short
    report = examined_alone([*DOCTOR, "--", *command, "--data.global_batch=16"], {})
    assert wrong_in(report) == []
    plan = [finding["text"].partition(":")[0] for finding in report["together"]]
    assert {"data", "memory", "disk"} <= set(plan)
    report = examined_alone([*DOCTOR, "--", *command, "--data.global_batch=4096"], {})
    assert [check for check, _ in wrong_in(report)] == ["plan"]
    assert not (tmp_path / "run").exists()


def examined(
    network: Network,
    folder: Path,
    second: Mapping[str, str] | None = None,
    *,
    second_starts: Sequence[str] = (),
    wait_s: int = 600,
) -> list[Report]:
    """Examine two machines; return the report of the first, and that of the second if they did not meet.

    Args:
        network: the machines
        folder: a folder that they share
        second: variables of the second machine
        second_starts: a command that starts the examination of the second machine
        wait_s: seconds that one waits for the other
    """
    processes = []
    for node in range(NODES):
        environment = {
            "MASTER_ADDR": network.address(0),
            "MASTER_PORT": str(PORT),
            "RANK": str(node),
            "WORLD_SIZE": str(NODES),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
        }
        command = [*(second_starts if node else ()), *DOCTOR, f"--folders=[{folder}]", f"--timeout_s={wait_s}"]
        processes.append(start(network.on(node, command), environment | dict((second if node else None) or {})))
    return [report for process in processes if (report := report_of(process)) is not None]


@pytest.mark.netns
def test_two_healthy_machines_have_nothing_wrong_and_time_their_link(network: Network, tmp_path: Path) -> None:
    [report] = examined(network, tmp_path)
    assert wrong_in(report) == []
    assert [finding["check"] for finding in report["together"]] == ["versions", "clocks", "shared folders", "links"]
    assert "all-reduce of 17 MB in" in report["together"][-1]["text"]
    assert "eth0 leads to MASTER_ADDR" in report["machines"][1]["findings"][-2]["text"]
    assert not list(tmp_path.iterdir())


@pytest.mark.netns
def test_a_clock_other_versions_and_another_disk_are_found(network: Network, tmp_path: Path) -> None:
    """All at once on the second machine: 30 s ahead, another Pillow, and a disk of its own under the same path."""
    shared, site = tmp_path / "shared", tmp_path / "site"
    (site / "pillow-1.0.dist-info").mkdir(parents=True)
    (site / "pillow-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.0\n")
    shared.mkdir()
    path = os.pathsep.join([str(site), *sys.path])
    own_disk = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
    environment = clock_30_s_ahead(tmp_path) | {"PYTHONPATH": path}
    [report] = examined(network, shared, environment, second_starts=own_disk)
    pillow, clock, disk = wrong_in(report)
    first, second = (f"{os.uname().nodename} (rank {rank})" for rank in range(NODES))
    assert pillow == ("versions", f"{second} has pillow 1.0 instead of {versions()['pillow']} of {first}")
    check, text = clock
    assert check == "clocks"
    assert 29 < float(text.removeprefix(f"that of {second} is ").partition(" s ahead of")[0]) < 35
    assert disk == ("shared folders", f"{shared} of {second} is not that of {first}")


@pytest.mark.netns
def test_a_wrong_interface_is_found(network: Network, tmp_path: Path) -> None:
    _, second = examined(network, tmp_path, {"GLOO_SOCKET_IFNAME": "lo"}, wait_s=20)
    assert wrong_in(second) == [
        ("interfaces", "GLOO_SOCKET_IFNAME=lo chooses the loopback, which no other machine reaches, of lo, eth0")
    ]


@pytest.mark.netns
def test_a_port_that_cannot_be_reached_is_found(network: Network, tmp_path: Path) -> None:
    network.unplug(1)
    first, second = examined(network, tmp_path, wait_s=20)
    [(check, text)] = wrong_in(second)
    assert check == "rendezvous"
    assert text.startswith(f"{network.address(0)}:{PORT} cannot be reached for 20 s: ")
    [(check, text)] = wrong_in(first)
    assert check == "rendezvous"
    assert text.startswith("not all of WORLD_SIZE=2 processes joined within timeout_s=20")
