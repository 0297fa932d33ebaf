from pathlib import Path

import pytest

from tests.support.benchmark_runs import run_benchmark

TINY = [
    *("--backbone=resnet18", "--size_px=32", "--local_batch=4", "--small_local_batch=0", "--engines=ddp"),
    *("--parts=2", "--ranks=1", "--window_steps=3", "--limit_calls=1", "--images=24", "--executor=torchvision"),
]


@pytest.mark.slow
def test_step_benchmark_measures_the_loop_and_its_limit_also_from_outside(tmp_path: Path) -> None:
    result, text = run_benchmark("step", tmp_path / "step.json", *TINY)
    assert set(result["median"]) == {"resnet18, 32 px, ddp, 2 micro-batches"}
    (figures,) = result["median"].values()
    assert set(figures) == set(result["units"])
    assert min(figures["images_per_s"], figures["limit_images_per_s"], figures["gflop_per_s"], figures["save_s"]) > 0
    assert 0 <= figures["overhead_share"] + figures["wait_share"] < 1
    assert 0 < figures["outside_share"] < 1
    assert "outside" in text
