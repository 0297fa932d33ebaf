from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from benchmarks.seed_coverage import Study, draw_recipe, measure
from evaluation.results.scores import Difference
from evaluation.scoring.recipes import recipe_auc, recipe_difference
from evaluation.scoring.scores import Predictions
from tests.support.recipes_by_hand import by_hand


def recipes(study: Study, seed: int, other: float = 0.0) -> tuple[list[Predictions], list[Predictions]]:
    """Return two recipes tested on the same patients; the AUC of the second one is `other`, if given."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=study.patients)
    return draw_recipe(random, shared, study), draw_recipe(random, shared, replace(study, auc=other or study.auc))


def test_difference_of_two_recipes_with_three_seeds_is_that_of_a_computation_by_hand() -> None:
    first, second = recipes(Study(3, 100, 0.3, auc=0.93), seed=3, other=0.85)
    value, error, freedom = by_hand(first, second, resamples=300)
    found = recipe_difference(first, second, resamples=2000, seed=0)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.low is not None and found.high is not None
    assert found.high - found.value == pytest.approx(found.value - found.low)
    assert found.high - found.low == pytest.approx(2 * t.ppf(0.975, freedom) * error, rel=0.1)
    assert found.p == pytest.approx(2 * t.sf(value / error, freedom), rel=0.5)
    assert 2 < freedom < 6


def test_few_seeds_make_an_interval_wider_and_one_seed_speaks_of_these_weights() -> None:
    first, second = recipes(Study(8, 200, 0.3), seed=1)

    def width(seeds: int) -> float:
        found = recipe_difference(first[:seeds], second[:seeds], resamples=300, seed=0)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(2) > 2 * width(8)
    assert width(1) < width(2)


def test_equal_recipes_do_not_differ_and_without_resamples_nothing_is_claimed() -> None:
    runs, _ = recipes(Study(3, 50, 0.1), seed=2)
    assert recipe_difference(runs, runs, resamples=0, seed=0) == Difference(0.0)
    same = recipe_difference(runs[:1], runs[:1], resamples=200, seed=0)
    assert (same.value, same.p) == (0.0, 1.0)
    assert recipe_auc(runs, resamples=0, seed=0).low is None


@pytest.mark.parametrize("name", ["classes", "patients", "parts"])
def test_runs_on_other_images_are_refused(name: str) -> None:
    [one], _ = recipes(Study(1, 50, 0.1), seed=2)
    other = replace(one, **{name: getattr(one, name)[::-1] + 1})
    with pytest.raises(AssertionError, match=name):
        recipe_difference([one], [other], resamples=0, seed=0)


def test_intervals_over_three_seeds_hold_the_truth_and_those_over_patients_alone_do_not() -> None:
    coverage = measure(Study(3, 200, 0.4), studies=50, resamples=60)
    assert coverage.difference >= 88  # 95 %, with a standard error of 3 %
    assert coverage.patients_alone < 85


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("between", [0.0, 0.1, 0.4])
def test_intervals_over_seeds_hold_the_truth_as_often_as_they_say_when_measured_finely(
    seeds: int, between: float
) -> None:
    coverage = measure(Study(seeds, 200, between), studies=600, resamples=200)
    assert coverage.difference >= 93, coverage
    # 600 studies have a standard error of 1.1 points. With three seeds that differ much (0.4), 3,000 studies give 92.8.
    assert coverage.mean_auc >= 90, coverage
