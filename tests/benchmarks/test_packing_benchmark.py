import json
from pathlib import Path

import pytest

from benchmarks import packing


def test_packing_benchmark_measures_all_ways_and_writes_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packing.json"
    packing.main(["--images=8", "--size_px=64", "--repeats=1", "--workers=2", f"--out={out}"])
    result = json.loads(out.read_text())
    assert result["unit"] == "images/s"
    (rates,) = result["median"].values()
    assert {"sternum", "limit", "webdataset"} <= set(rates)
    assert min(rates.values()) > 0
    assert "sternum is" in capsys.readouterr().out
