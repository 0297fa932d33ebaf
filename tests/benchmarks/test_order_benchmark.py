import json
from pathlib import Path

import pytest

from benchmarks import order


def test_order_benchmark_measures_planning_and_what_nodes_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "order.json"
    arguments = ["--samples=40000", "--shards=400", "--ranks=64", "--nodes=8", "--steps=10"]
    order.main([*arguments, "--small_samples=30000", "--small_shards=60", f"--out={out}"])
    result = json.loads(out.read_text())
    assert {"first_batch_ms", "peak_mb", "read_gb", "fair_gb"} <= set(result["units"])
    for name in ("chexpert", "huge"):
        assert min(result[name]["planning"].values()) > 0
    alone, *several = result["chexpert"]["reading"]
    assert alone["read_gb"] == pytest.approx(alone["fair_gb"])  # one node reads every shard, and once
    assert [row["nodes"] for row in several] == [2, 4, 8, 16]
    assert all(1 <= row["read_over_fair"] <= row["read_over_fair_most"] for row in several)
    (huge,) = result["huge"]["reading"]
    assert huge["nodes_counted"] == 8
    assert huge["read_over_fair_most"] <= (400 / 8 + 2) / (400 / 8) * 1.3  # its segment and the shards at its two ends
    assert "16 of 16 nodes" in capsys.readouterr().out
