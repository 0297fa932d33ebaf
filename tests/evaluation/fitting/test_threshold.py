import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.fitting.threshold import threshold_of, youden_threshold
from evaluation.results.presets import PRESETS


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.integers(0, 60), st.sampled_from([1, 2, 5, 1000]))
def test_youden_threshold_is_the_best_of_all_and_the_nearest_to_a_half(seed: int, count: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    classes = np.array([0, 1, *random.integers(0, 2, count)])
    probabilities = random.integers(0, levels + 1, len(classes)) / levels  # with fewer levels, more are tied

    def index(threshold: float) -> float:
        decisions = probabilities > threshold
        positive = classes == 1
        return decisions[positive].mean() + (~decisions)[~positive].mean()

    threshold = youden_threshold(classes, probabilities)
    assert 0 <= threshold <= 1
    values = np.unique([0, 1, *probabilities])
    middles = [*(values[1:] + values[:-1]) / 2, 1.0]
    assert threshold in middles
    assert index(threshold) == pytest.approx(max(map(index, middles)), abs=1e-12)
    nearer = [middle for middle in middles if abs(middle - 0.5) < abs(threshold - 0.5)]
    assert all(index(middle) < index(threshold) - 1e-12 for middle in nearer)


@pytest.mark.parametrize(
    ("negative", "positive", "threshold"),
    [
        ([0.1, 0.25], [0.5, 0.9], 0.375),
        ([0.2], [np.nextafter(1.0, 0), 1.0], (0.2 + np.nextafter(1.0, 0)) / 2),
        ([np.nextafter(1.0, 0)], [1.0], np.nextafter(1.0, 0)),  # no number lies between
        ([0.0, 0.0], [0.0, 0.0], 0.5),
        ([1.0], [0.0], 1.0),  # calling none positive
        ([0.9], [0.2], 0.1),  # the wrong way round: calling all positive is no worse than anything
    ],
)
def test_youden_threshold_of_a_case_by_hand(negative: list[float], positive: list[float], threshold: float) -> None:
    classes = np.repeat([0, 1], [len(negative), len(positive)])
    assert youden_threshold(classes, np.array(negative + positive)) == threshold


def test_a_preset_takes_the_threshold_of_validation_or_a_half() -> None:
    classes, probabilities = np.array([0, 0, 1, 1]), np.array([0.1, 0.25, 0.5, 0.9])
    assert threshold_of(PRESETS["rigorous"], classes, probabilities) == 0.375
    assert threshold_of(PRESETS["gazda2021"], classes, probabilities) == 0.5
