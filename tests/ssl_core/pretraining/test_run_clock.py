import time

import pytest

from ssl_core.pretraining.run_clock import RunClock


def test_a_resumed_run_counts_the_lost_time_but_not_as_training() -> None:
    before = {"time_s": time.time() - 60, "run/age_s": 40.0, "run/training_s": 30.0}
    values = RunClock(before, earlier_starts=2).values(training_s=20.0)
    assert values["run/age_s"] == pytest.approx(100, abs=1)
    assert values["run/training_s"] == 50
    assert values["run/training_share"] == pytest.approx(0.5, abs=0.01)
    assert values["run/restarts"] == 2


def test_a_new_run_and_one_of_an_older_version_begin_now() -> None:
    assert RunClock(None, 0).values(0.0)["run/age_s"] < 1
    older = RunClock({"time_s": time.time() - 5}, 1).values(1.0)
    assert older["run/training_share"] == pytest.approx(0.2, abs=0.02)
