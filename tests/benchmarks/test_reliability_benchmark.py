from pathlib import Path
from typing import Any

import pytest

from tests.support.benchmark_runs import run_benchmark


def run(out: Path, *options: str) -> dict[str, Any]:
    result, text = run_benchmark("reliability", out, *options)
    assert out.with_suffix(".md").read_text() in text
    return result


@pytest.mark.slow
def test_reliability_benchmark_kills_and_finds_the_same_run(tmp_path: Path) -> None:
    result = run(tmp_path / "faults.json", "--sections=faults", "--kills=1", "--times=0")
    (row,) = result["faults"]
    assert (row["injected"], row["recovered"], row["samples_lost_or_repeated"]) == (1, 1, 0)
    assert row["steps_redone"] > 0
    assert set(row) - {"fault"} <= set(result["units"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_reliability_benchmark_measures_all_faults_and_the_ratio(tmp_path: Path) -> None:
    sections = ["--sections", "ratio", "faults"]  # what `network` does is tested in tests/faults/test_netns.py
    result = run(tmp_path / "all.json", *sections, "--times=1", "--kills=1", "--ratio_s=120", "--size_px=32")
    assert all(row["injected"] == row["recovered"] for row in result["faults"])
    assert all(row["samples_lost_or_repeated"] == 0 for row in result["faults"])
    assert 0 < result["ratio"]["effective_share"] < 1
    assert result["ratio"]["kills"] == 2
    assert result["ratio"]["samples_lost_or_repeated"] == 0
