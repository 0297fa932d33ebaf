"""A command submitted to a real job server of Ray on this machine, which asks for a token."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.errors import UserError
from infra.monitoring.status import Status, write_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class JobServer:
    """The address of a job server, and the file with its token."""

    address: str
    token: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """Ray with its dashboard on the loopback address, started as the file for `ray up` starts a head."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0" * 64)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces the loopback address, on Linux too
            # A busy machine needs longer than Ray allows for each step of its start.
            "RAY_raylet_start_wait_time_s": "600",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
            "RAY_agent_register_timeout_ms": "600000",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        words = ["--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=1"]
        words += ["--port=0", "--dashboard-port=0", f"--temp-dir={folder}", "--object-store-memory=80000000"]
        log = Path(folder) / "start.log"
        with log.open("w") as file:
            head = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *words], env=environment, stdout=file, stderr=file
            )
        try:
            yield JobServer(wait_for_address(log, head), token)
        finally:
            processes = psutil.Process(head.pid).children(recursive=True)
            for process in [*processes, psutil.Process(head.pid)]:
                process.kill()
            head.wait(30)


def wait_for_address(log: Path, head: subprocess.Popen[bytes]) -> str:
    """Return the address of the job server, from what `ray start` prints."""
    until_s = time.monotonic() + 900
    while time.monotonic() < until_s:
        assert head.poll() is None, log.read_text()
        if found := re.search(r"RAY_API_SERVER_ADDRESS='(http://127\.0\.0\.1:\d+)'", log.read_text()):
            return found[1]
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_submitted_command_runs_on_the_cluster_and_its_output_comes_back(server: JobServer, tmp_path: Path) -> None:
    """In processes of their own, because Ray keeps the first way to authenticate that it uses."""
    write_status(tmp_path / "run", Status("finished", 7))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(server.token),
        "PYTHONPATH": str(ROOT),
    }

    def printed(*command: str | Path) -> str:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    submit = [sys.executable, "-m", "launch", "submit", "ray", f"--ray.address={server.address}"]
    name = printed(*submit, "--", "sternum", "runs", str(tmp_path)).strip()
    ray, address = Path(sys.executable).with_name("ray"), f"--address={server.address}"
    assert "finished" in printed(ray, "job", "logs", "--follow", address, name)
    assert "succeeded" in printed(ray, "job", "status", address, name).lower()


def test_whoever_has_no_token_is_turned_away(server: JobServer) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    words = ["submit", "ray", f"--ray.address={server.address}", "--", "sternum", "runs", "/"]
    ended = subprocess.run(
        [sys.executable, "-m", "launch", *words], env=clean, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == UserError.exit_code
    assert "requires a token; set RAY_AUTH_MODE=token" in ended.stderr
    assert ended.stderr.count("\n") == 1
