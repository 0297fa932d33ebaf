"""Batch scripts of `sternum submit slurm`, run by stand-ins of SLURM's tools on two network namespaces."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from infra.configuration import config as configuration
from infra.monitoring.status import read_status
from launch.cli import main
from sharding.simulation.datasets import write_cell
from ssl_core.engines import EngineConfig
from ssl_core.pretraining.config import PretrainConfig
from tests.support.faulty_training import (
    Outcome,
    assert_same_bits,
    read_outcome,
    start_ranks,
    steps_done,
    total_steps,
    wait_for_ranks,
)
from tests.support.network_namespaces import NODES, Network, machine_config, machine_network
from tests.support.slurm import Slurm
from tests.support.slurm_tools import JOB

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(3600)]


def slurm_on(network: Network, nodes: Sequence[Sequence[str]], folder: Path, patch: pytest.MonkeyPatch) -> Slurm:
    """Return a cluster; each node is a command in front of what runs there, inside its namespace of the network."""
    names = [network.address(node) for node in range(len(nodes))]
    cluster = Slurm(folder, [(name, network.on(node, [*nodes[node]])) for node, name in enumerate(names)])
    for name, value in cluster.environment.items():
        patch.setenv(name, value)
    return cluster


@pytest.fixture
def slurm(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return slurm_on(network, [[]] * NODES, tmp_path / "slurm", monkeypatch)


def run_of(folder: Path, shards: Path, kind: str, nodes: int = NODES) -> PretrainConfig:
    # DeepSpeed's launcher starts each rank once its own node is ready, and imports DeepSpeed three times before: on a
    # busy machine the ranks meet minutes apart.
    config = machine_config(folder / "run", shards, timeout_s=600.0, nodes=nodes)
    return replace(config, engine=EngineConfig(kind="deepspeed" if kind == "deepspeed" else "ddp"))


@pytest.fixture(scope="module", params=["torchrun", "deepspeed"])
def launcher(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path, launcher: str) -> Outcome:
    """The outcome of a run on one machine."""
    config = run_of(tmp_path_factory.mktemp("undisturbed"), simulated_shards, launcher)
    assert wait_for_ranks(start_ranks(config, NODES), timeout_s=600) == [0] * NODES
    return read_outcome(config.run_folder)


def submit(config: PretrainConfig, launcher: str, nodes: int = NODES) -> None:
    path = config.run_folder.with_name("run.yaml")
    configuration.save(config, path)
    words = ["--env=[GLOO_SOCKET_IFNAME=eth0,DS_ACCELERATOR=cpu]", f"--slurm.launcher={launcher}"]
    command = ["sternum", "pretrain", str(config.run_folder), f"--config={path}"]
    assert main(["submit", "slurm", f"--nodes={nodes}", *words, "--", *command]) == 0


def test_a_job_that_meets_its_time_limit_is_requeued_and_ends_as_if_nothing_had_been(
    tmp_path: Path,
    simulated_shards: Path,
    slurm: Slurm,
    launcher: str,
    undisturbed: Outcome,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two nodes, one process each; the sample log, the losses and the weights are those of one machine."""
    config = run_of(tmp_path, simulated_shards, launcher)
    submit(config, launcher)
    assert capsys.readouterr().out == f"{JOB}\n"
    with slurm.start(tmp_path / "log") as job:
        job.wait_for_step(config.run_folder, 6, timeout_s=1200)
        os.kill(job.process.pid, signal.SIGUSR1)  # as --signal=B:USR1@300 does
        assert job.end(timeout_s=600) == 1, job.output()
    assert slurm.requeued() == [str(JOB)]
    status = read_status(config.run_folder)
    assert status is not None
    assert status.state == "preempted", job.output()
    assert 6 <= steps_done(config.run_folder) < total_steps(config)
    with slurm.start(tmp_path / "log", restarts=1) as job:
        assert job.end(timeout_s=1200) == 0, job.output()
    assert slurm.requeued() == [str(JOB)]
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_a_lost_node_ends_the_job_and_the_requeued_job_resumes(
    tmp_path: Path, simulated_shards: Path, network: Network, slurm: Slurm, launcher: str, undisturbed: Outcome
) -> None:
    """SLURM itself requeues a job (--requeue) when a node fails; the stand-in of that is the second start."""
    config = run_of(tmp_path, simulated_shards, launcher)
    submit(config, launcher)
    with slurm.start(tmp_path / "log") as job:
        job.wait_for_step(config.run_folder, 6, timeout_s=1200)
        network.unplug(1)
        network.kill(1)
    assert steps_done(config.run_folder) < total_steps(config)
    network.plug_in(1)
    with slurm.start(tmp_path / "log", restarts=1) as job:
        assert job.end(timeout_s=1200) == 0, job.output()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_a_cancelled_job_saves_and_is_not_requeued(
    tmp_path: Path, simulated_shards: Path, slurm: Slurm, launcher: str
) -> None:
    """`scancel JOB` sends TERM to the tasks; the script must not take that for the time limit."""
    if launcher == "deepspeed":
        pytest.skip("the signal goes through the same supervisor")
    config = run_of(tmp_path, simulated_shards, launcher)
    submit(config, launcher)
    with slurm.start(tmp_path / "log") as job:
        job.wait_for_step(config.run_folder, 3, timeout_s=1200)
        subprocess.run(["scancel", "--signal=TERM", str(JOB)], check=True)
        assert job.end(timeout_s=600) == 1, job.output()
    assert slurm.requeued() == []
    assert steps_done(config.run_folder) >= 3


def test_four_nodes_of_which_one_is_lost_end_as_one_machine(
    tmp_path: Path, simulated_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of(tmp_path, simulated_shards, "torchrun", nodes=4)
    alone = replace(config, run_folder=tmp_path / "alone")
    assert wait_for_ranks(start_ranks(alone, 4), timeout_s=600) == [0] * 4
    with machine_network(4) as network:
        slurm = slurm_on(network, [[]] * 4, tmp_path / "slurm", monkeypatch)
        submit(config, "torchrun", nodes=4)
        with slurm.start(tmp_path / "log") as job:
            job.wait_for_step(config.run_folder, 6, timeout_s=1200)
            network.unplug(3)
            network.kill(3)
        assert steps_done(config.run_folder) < total_steps(config)
        network.plug_in(3)
        with slurm.start(tmp_path / "log", restarts=1) as job:
            assert job.end(timeout_s=1200) == 0, job.output()
    assert_same_bits(read_outcome(config.run_folder), read_outcome(alone.run_folder))


def test_features_of_two_nodes_are_those_of_one_process(tmp_path: Path, simulated_shards: Path, slurm: Slurm) -> None:
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    command = ["embed", str(simulated_shards), f"--backbone={tmp_path}/weights.pth@resnet18", "--input.size_px=32"]
    command += ["--executor=torchvision", "--local_batch=8"]
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    assert main([*command, f"--out={here}"]) == 0
    words = ["slurm", f"--nodes={NODES}", "--env=[GLOO_SOCKET_IFNAME=eth0]"]
    assert main(["submit", *words, "--", "sternum", *command, f"--out={there}"]) == 0
    with slurm.start(tmp_path / "log") as job:
        assert job.end(timeout_s=1200) == 0, job.output()
    with np.load(here) as ours, np.load(there) as theirs:
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours.files)


def test_nodes_that_do_not_share_the_run_folder_are_told_so_before_the_run(
    tmp_path: Path, simulated_shards: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of(tmp_path / "disk", simulated_shards, "torchrun")
    config.run_folder.parent.mkdir()
    own_disk = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {config.run_folder.parent} && exec "$@"', "sh"]
    slurm = slurm_on(network, [[], own_disk], tmp_path / "slurm", monkeypatch)
    submit(config, "torchrun")
    with slurm.start(tmp_path / "log") as job:
        assert job.end(timeout_s=600) == 1, job.output()
    assert "WRONG shared folders: " in job.output()
    assert "1 thing must be mended before a run" in job.output()
    assert not config.run_folder.exists()
    assert slurm.requeued() == []


def test_shards_of_a_ray_cluster_of_two_nodes_are_those_of_one_machine(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has processes and Ray's folder of its own, because `ray symmetric-run` stops every Ray that it sees."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    nodes = []
    for number in range(NODES):
        (tmp_path / f"ray-{number}").mkdir()
        own = f'mount --bind {tmp_path}/ray-{number} /tmp/ray && exec "$@"'
        nodes.append(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", own, "sh"])
    slurm = slurm_on(network, nodes, tmp_path / "slurm", monkeypatch)
    write_cell(tmp_path / "raw", {"train": 60}, seed=0, size_px=64)
    command = ["shard", "cell", f"--root={tmp_path}/raw", "--shorter_side_px=32", "--allow_missing=true"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert main([*command, f"--out={here}", "--workers=1"]) == 0
    words = ["slurm", f"--nodes={NODES}", "--cpus=1", "--env=[GLOO_SOCKET_IFNAME=eth0]"]
    assert main(["submit", *words, "--", "sternum", *command, f"--out={there}"]) == 0
    with slurm.start(tmp_path / "log") as job:
        assert job.end(timeout_s=1200) == 0, job.output()
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in here.iterdir()
    }
