import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--images", "120", "60", "--size=8", "--cores=2", "--repeats=1"]


@pytest.mark.slow
def test_probe_benchmark_times_three_ways_that_choose_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.probe", *SMALL, f"--out={tmp_path / 'probe.json'}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads((tmp_path / "probe.json").read_text())
    assert set(result["seconds"]) == {"sternum, Ray Tune", "sternum, serial", "GridSearchCV"}
    assert min(seconds[0] for seconds in result["seconds"].values()) > 0
    assert len(result["chosen"]) == 8
    assert all(0 < actual["auc"] <= 1 for actual in result["chosen"].values())
    assert set(result["units"]) >= {"seconds", "c", "auc"}
    assert "8 probes, 248 fits" in done.stdout
