import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra.errors import UserError
from infra.monitoring.metrics import read_metrics
from launch.demo import main


def listening(parent: psutil.Process) -> set[str | int]:
    """Return the addresses on which the descendants of a process wait for connections."""
    children = {child.pid for child in parent.children(recursive=True)}
    return {
        next(iter(connection.laddr))
        for connection in psutil.net_connections("inet")
        if connection.pid in children and connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.slow
@pytest.mark.timeout(900)  # about a minute, but each of its commands starts several processes
def test_the_demo_runs_the_whole_chain_on_two_processes_and_listens_on_loopback_only(tmp_path: Path) -> None:
    arguments = [f"--out={tmp_path / 'demo'}", "--patients=200", "--target_images=100", "--epochs=4"]
    addresses: set[str | int] = set()
    with (tmp_path / "output").open("w") as file:
        demo = subprocess.Popen([sys.executable, "-m", "launch", "demo", *arguments], stdout=file, stderr=file)
        while demo.poll() is None:
            with suppress(psutil.NoSuchProcess):
                addresses |= listening(psutil.Process(demo.pid))
            time.sleep(0.2)
    output = (tmp_path / "output").read_text()
    assert demo.returncode == 0, output[-5000:]
    assert "127.0.0.1" in addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    run = tmp_path / "demo" / "run"
    assert read_metrics(run)[-1]["epoch"] >= 1
    assert '<img class="map"' in (run / "report.html").read_text()
    assert str(run / "report.html") in output
    results = json.loads((run / "results.json").read_text())
    controls = {"untrained", "pixels", "border", "attributes", "shuffled", "shuffled_over_all"}
    assert {row["kind"] for row in results["rows"]} == {"checkpoint", *controls}
    assert "simulated" in output

    with pytest.raises(UserError, match="holds a demo with other options"):
        main([*arguments, "--seed=1"])
