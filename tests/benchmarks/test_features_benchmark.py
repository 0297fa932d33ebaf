import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--images=40", "--size_px=32", "--backbones=2", "--processes=2", "--repeats=1"]


@pytest.mark.slow
def test_features_benchmark_times_two_ways_with_equal_features(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.features", *SMALL, f"--out={tmp_path / 'features.json'}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "features.json").read_text())
    assert set(result["seconds"]) == {"one process", "2 processes"}
    assert all(taken[0] > 0 for taken in result["seconds"].values())
