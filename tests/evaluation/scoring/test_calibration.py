from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss, roc_auc_score

from evaluation.results.classifier import recalibrate
from evaluation.results.scores import Bin
from evaluation.scoring.calibration import calibration, platt


def _predicted(seed: int, count: int, distort: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from true probabilities, and these as a probe would distort them."""
    random = np.random.default_rng(seed)
    true = expit(random.normal(-1, 2, count))
    return (random.random(count) < true).astype(np.int64), distort(true)


def _overconfident(true: np.ndarray) -> np.ndarray:
    return expit(3 * logit(true) + 1.5)


def test_platt_lowers_the_brier_score_on_fresh_data_when_probabilities_are_distorted() -> None:
    slope, intercept = platt(*_predicted(0, 2000, _overconfident))
    classes, probabilities = _predicted(1, 2000, _overconfident)
    result = calibration(classes, probabilities, recalibrate(probabilities, slope, intercept))
    ideal = brier_score_loss(*_predicted(1, 2000, lambda true: true))
    assert result.brier > result.brier_recalibrated + 0.02
    assert result.brier_recalibrated == pytest.approx(ideal, abs=0.003)
    assert result.brier_recalibrated < result.brier_prevalence


def test_platt_undoes_the_distortion_of_a_known_map() -> None:
    slope, intercept = platt(*_predicted(2, 100_000, _overconfident))
    assert slope == pytest.approx(1 / 3, abs=0.01)  # the inverse of 3 x + 1.5
    assert intercept == pytest.approx(-1.5 / 3, abs=0.03)


def test_platt_changes_nothing_when_probabilities_are_right() -> None:
    slope, intercept = platt(*_predicted(3, 100_000, lambda true: true))
    assert (slope, intercept) == pytest.approx((1, 0), abs=0.03)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    positive=st.integers(1, 40),
    negative=st.integers(1, 40),
    gap=st.sampled_from([1e-9, 1e-3, 0.2, 1.0]),
)
def test_platt_stays_bounded_when_classes_are_separable(seed: int, positive: int, negative: int, gap: float) -> None:
    random = np.random.default_rng(seed)
    low = (1 - gap) / 2
    probabilities = np.concatenate([random.uniform(0, low, negative), random.uniform(low + gap, 1, positive)])
    classes = np.repeat([0, 1], [negative, positive])
    slope, intercept = platt(classes, probabilities)
    recalibrated = recalibrate(probabilities, slope, intercept)
    assert np.isfinite([slope, intercept]).all()
    # The mean of the targets, which a logistic regression with an intercept keeps.
    smoothed = positive * (positive + 1) / (positive + 2) + negative / (negative + 2)
    assert recalibrated.sum() == pytest.approx(smoothed, abs=1e-3 * len(classes))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_platt_gives_the_share_of_positives_when_all_probabilities_are_equal(value: float) -> None:
    probabilities = np.full(1000, value)
    classes = (np.arange(1000) < 200).astype(np.int64)
    assert recalibrate(probabilities, *platt(classes, probabilities)) == pytest.approx(0.2, abs=0.002)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), slope=st.floats(0.1, 5), intercept=st.floats(-3, 3))
def test_recalibration_keeps_the_auc_when_the_slope_is_positive(seed: int, slope: float, intercept: float) -> None:
    classes, probabilities = _predicted(seed, 50, lambda true: np.round(true, 2).clip(0.01, 0.99))
    classes[:2] = 0, 1
    recalibrated = recalibrate(probabilities, slope, intercept)
    assert roc_auc_score(classes, recalibrated) == pytest.approx(roc_auc_score(classes, probabilities), abs=1e-12)


def test_brier_scores_are_those_of_a_case_counted_by_hand() -> None:
    classes = np.array([1, 0, 0, 0])
    result = calibration(classes, np.array([0.5, 0.5, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.2]))
    assert result.brier == pytest.approx((0.25 + 0.25 + 0 + 1) / 4)
    assert result.brier_recalibrated == pytest.approx(0.04 / 4)
    assert result.brier_prevalence == pytest.approx(0.25 * 0.75)
    assert result.bins == [Bin(0.5, 0.25, 4)]  # too few images for two


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 300), levels=st.sampled_from([1, 3, 20, 10**6]))
def test_bins_hold_every_image_once_and_no_tie_is_split(seed: int, count: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    classes = np.array([0, 1, *random.integers(0, 2, count)])
    probabilities = random.integers(0, levels + 1, len(classes)) / levels
    bins = calibration(classes, probabilities, probabilities).bins
    assert sum(part.images for part in bins) == len(classes)
    assert sum(part.images * part.observed for part in bins) == pytest.approx(classes.sum())
    assert sum(part.images * part.predicted for part in bins) == pytest.approx(probabilities.sum())
    assert 1 <= len(bins) <= min(10, max(1, len(classes) // 5))
    ends = np.cumsum([part.images for part in bins])[:-1]
    ordered = np.sort(probabilities)
    assert (ordered[ends - 1] < ordered[ends]).all()


@pytest.mark.parametrize(("count", "sizes"), [(49, 9), (50, 10), (1000, 10), (4, 1), (12, 2)])
def test_bins_are_of_equal_counts_when_no_probabilities_are_equal(count: int, sizes: int) -> None:
    classes = np.arange(count) % 2
    bins = calibration(classes, np.linspace(0, 1, count), np.full(count, 0.5)).bins
    counts = [part.images for part in bins]
    assert len(counts) == sizes
    assert max(counts) - min(counts) <= 1
