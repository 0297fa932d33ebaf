import os

import numpy as np
import pytest

from evaluation.search import Problem, fit, search_serially, search_with_ray
from infra.errors import RunFailed


def problem(seed: int, features: int = 24, count: int = 120) -> Problem:
    random = np.random.default_rng(seed)
    classes = np.arange(count) % 2
    values = random.normal(size=(count, features)).astype(np.float32) + 0.4 * classes[:, None].astype(np.float32)
    return Problem(values, classes, np.arange(count) // 2 % 4)


def test_ray_gives_what_the_serial_search_gives_to_the_last_digit(ray: None) -> None:
    problems = {"a": problem(0), "b": problem(1, features=300)}
    serial = search_serially(problems, (0.01, 0.1, 1.0), 100)
    parallel = search_with_ray(problems, (0.01, 0.1, 1.0), 100)
    assert len(serial) == 2 * 3 * 4
    assert [(t.problem, t.c, t.fold, t.auc, t.converged) for t in parallel] == [
        (t.problem, t.c, t.fold, t.auc, t.converged) for t in serial
    ]


def test_ray_search_fails_with_the_reason_of_the_trial_when_a_fit_fails(ray: None) -> None:
    broken = problem(2)
    broken.values[3, 5] = np.nan
    with pytest.raises(RunFailed, match=r"a probe could not be fitted: .*NaN"):
        search_with_ray({"broken": broken}, (0.1,), 100)


def test_ray_is_quiet_and_reachable_from_this_machine_only(ray: None, capfd: pytest.CaptureFixture[str]) -> None:
    import ray as library  # noqa: PLC0415 (the fixture sets its environment first)

    search_with_ray({"a": problem(0)}, (0.1,), 100)
    assert [node["NodeManagerAddress"] for node in library.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    output = capfd.readouterr()
    assert output.out == ""
    assert "Trial" not in output.err


def test_fit_says_whether_it_converged() -> None:
    data = problem(3)
    assert fit(data.values, data.classes, 1.0, 1000)[1] is True
    assert fit(data.values, data.classes, 1.0, 1)[1] is False


def test_held_out_fold_does_not_reach_the_fit() -> None:
    honest = problem(4)
    flipped = Problem(honest.values, np.where(honest.fold == 2, 1 - honest.classes, honest.classes), honest.fold)
    (first,) = [trial for trial in search_serially({"x": honest}, (0.1,), 100) if trial.fold == 2]
    (other,) = [trial for trial in search_serially({"x": flipped}, (0.1,), 100) if trial.fold == 2]
    assert other.auc == pytest.approx(1 - first.auc, abs=1e-12)
