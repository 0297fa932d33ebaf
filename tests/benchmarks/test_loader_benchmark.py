from pathlib import Path

import pytest

from tests.support.benchmark_runs import run_benchmark

TINY = ["--images=24", "--size_px=32", "--local_batch=8", "--repeats=1", "--window_s=0.2", "--warm_batches=1"]
OURS = {"sternum, torchvision", "its limit, torchvision"}


@pytest.mark.slow
def test_loader_benchmark_measures_ours_and_its_limit(tmp_path: Path) -> None:
    result, text = run_benchmark("loader", tmp_path / "loader.json", *TINY, "--cpus=1", "--ways", *OURS)
    assert result["units"]["images_per_s"] == "images/s"
    (rates,) = result["median"].values()
    assert set(rates) == OURS
    assert min(figures["images_per_s"] for figures in rates.values()) > 0
    assert all(0 <= figures["wait_share"] <= 1 for figures in rates.values())
    assert "torchvision: " in text and "% of the limit" in text


@pytest.mark.slow
def test_loader_benchmark_measures_all_ways_or_says_why_not(tmp_path: Path) -> None:
    result, text = run_benchmark("loader", tmp_path / "loader.json", *TINY)
    (rates,), (left_out,) = result["median"].values(), result["left_out"].values()
    assert set(rates) >= {
        *OURS,
        *("sternum, DALI", "its limit, DALI"),
        *("torchvision + DataLoader", "webdataset", "DALI, separate operators"),
    }
    assert set(left_out) <= {"mosaicml-streaming"}
    assert all("pip install" in line and line in text for line in left_out.values())
