from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation.results.scores import Difference
from evaluation.scoring.delong import applies, delong_difference
from evaluation.scoring.scores import Predictions, auc, auc_difference


def _pair(seed: int, positive: int, negative: int, levels: int = 0) -> tuple[Predictions, Predictions]:
    """Two correlated scores of the same patients; with `levels`, rounded so that many are tied."""
    random = np.random.default_rng(seed)
    classes = np.repeat([1, 0], [positive, negative])
    common = 1.2 * classes + random.normal(size=len(classes))
    values = [1 / (1 + np.exp(-common - random.normal(size=len(classes)))) for _ in range(2)]
    if levels:
        values = [np.round(levels * value) / levels for value in values]
    patients, parts = np.arange(len(classes)), np.zeros_like(classes)
    first, second = (Predictions(classes, value, value > 0.5, patients, parts) for value in values)
    return first, second


def _by_pairs(first: Predictions, second: Predictions) -> tuple[float, float]:
    """Return difference and standard error from the matrix of all pairs, equations 3 to 5 of DeLong et al. 1988."""
    positive, negative = np.flatnonzero(first.classes == 1), np.flatnonzero(first.classes == 0)
    components = []
    for predictions in (first, second):
        psi = np.array(
            [
                [np.heaviside(predictions.probabilities[i] - predictions.probabilities[j], 0.5) for j in negative]
                for i in positive
            ]
        )
        components.append((psi.mean(), psi.mean(axis=1), psi.mean(axis=0)))
    (one, v10, v01), (other, w10, w01) = components
    covariance = np.cov(v10, w10) / len(positive) + np.cov(v01, w01) / len(negative)
    contrast = np.array([1, -1])
    return one - other, float(np.sqrt(contrast @ covariance @ contrast))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 15), st.integers(2, 15), st.sampled_from([0, 3, 10]))
def test_delong_is_that_of_the_equations(seed: int, positive: int, negative: int, levels: int) -> None:
    first, second = _pair(seed, positive, negative, levels)
    found = delong_difference(first, second)
    difference, error = _by_pairs(first, second)
    assert found.value == pytest.approx(difference, abs=1e-12)
    assert found.value == pytest.approx(auc(first) - auc(second), abs=1e-12)
    if found.low is None or found.high is None or error < 1e-12:
        assert error == pytest.approx(0, abs=1e-9)
        return
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, difference, error))
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(difference) / error))


def test_delong_and_the_bootstrap_agree_on_many_patients() -> None:
    first, second = _pair(1, 200, 300)
    by_delong, by_bootstrap = delong_difference(first, second), auc_difference(first, second, resamples=1000, seed=0)
    assert by_delong.low is not None and by_delong.high is not None
    assert by_bootstrap.low is not None and by_bootstrap.high is not None
    width = by_delong.high - by_delong.low
    assert by_bootstrap.high - by_bootstrap.low == pytest.approx(width, rel=0.08)
    assert by_bootstrap.p == pytest.approx(by_delong.p, abs=0.03)


def test_features_without_any_variance_have_no_interval_unless_they_are_the_same() -> None:
    first, second = _pair(2, 5, 5)
    right, wrong = (replace(first, probabilities=np.abs(offset - first.classes)) for offset in (0.0, 1.0))
    assert delong_difference(right, wrong) == Difference(1.0)
    assert delong_difference(second, second) == Difference(0.0, 0.0, 0.0, "DeLong", 1.0)


def test_delong_is_refused_where_images_depend_on_each_other() -> None:
    first, _ = _pair(3, 5, 5)
    assert applies(first)
    for other in (replace(first, patients=first.patients // 2), replace(first, parts=first.patients % 2)):
        assert not applies(other)
        with pytest.raises(AssertionError, match="independent"):
            delong_difference(other, other)
    assert not applies(first.of(np.arange(4, 10)))  # one positive image has no variance
