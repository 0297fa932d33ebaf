import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_packing_benchmark_measures_all_ways_and_writes_units(tmp_path):
    out = tmp_path / "packing.json"
    arguments = ["--images=8", "--size_px=64", "--repeats=1", "--workers=2", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.packing", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    result = json.loads(out.read_text())
    assert result["unit"] == "images/s"
    (rates,) = result["median"].values()
    assert {"sternum", "limit", "webdataset"} <= set(rates)
    assert min(rates.values()) > 0
    assert "sternum is" in done.stdout
