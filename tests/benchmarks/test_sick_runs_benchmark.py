import json
from pathlib import Path

import pytest

from tests.support.benchmark_runs import run_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_sick_rank_shows_in_the_metrics_that_the_page_names(tmp_path: Path) -> None:
    figures, _ = run_benchmark(
        "sick_runs", tmp_path / "speed.json", "speed", "--images=64", "--global_batch=16", "--steps=40"
    )
    starved, healthy, slow = (figures["runs"][name][-1] for name in ("starved rank", "healthy", "slow rank"))
    assert starved["speed/data_wait_share_max"] > healthy["speed/data_wait_share_max"]
    assert starved["speed/data_wait_max_rank"] == 1
    assert slow["speed/step_p99_s"] > 2
    assert "<svg" in (tmp_path / "speed.svg").read_text()


def test_metrics_cost_little(tmp_path: Path) -> None:
    figures, _ = run_benchmark("monitoring_cost", tmp_path / "cost.json", "--windows=2")
    assert 0 < figures["median"]["share"] < 0.02
    assert json.loads((tmp_path / "cost.json").read_text()) == figures
