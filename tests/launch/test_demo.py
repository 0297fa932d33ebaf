import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.metrics import read_metrics
from launch.demo import main


@pytest.mark.timeout(900)  # about a minute, but each of its commands starts several processes
def test_the_demo_runs_the_whole_chain_on_two_processes(tmp_path: Path) -> None:
    arguments = [f"--out={tmp_path / 'demo'}", "--patients=200", "--target_images=100", "--epochs=4"]
    command = [sys.executable, "-m", "launch", "demo", *arguments]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    run = tmp_path / "demo" / "run"
    assert read_metrics(run)[-1]["epoch"] >= 1
    assert (run / "report.html").is_file()
    assert str(run / "report.html") in first.stdout
    results = json.loads((run / "results.json").read_text())
    assert {row["kind"] for row in results["rows"]} == {"checkpoint", "untrained", "pixels", "border", "shuffled"}
    assert "simulated" in first.stdout

    with pytest.raises(UserError, match="holds a demo with other options"):
        main([*arguments, "--seed=1"])
