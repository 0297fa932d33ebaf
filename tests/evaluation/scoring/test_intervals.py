from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from evaluation.results.scores import Difference, Estimate
from evaluation.scoring.intervals import Evidence, estimate, estimate_difference, exact, exact_f1
from evaluation.scoring.scores import Predictions, auc_difference, resampled_aucs, score


def _separated(positive: int, negative: int, images: int = 1) -> Predictions:
    """Patients whose classes are told apart completely, except that the threshold is too high for all."""
    patients = np.arange(positive + negative).repeat(images)
    classes = (patients < positive).astype(np.int64)
    probabilities = 0.2 + 0.2 * classes + 0.1 * patients / len(patients)
    return Predictions(classes, probabilities, probabilities > 0.9, patients, np.zeros_like(classes))


@given(patients=st.integers(1, 500), right=st.booleans())
def test_exact_interval_is_clopper_and_pearsons(patients: int, right: bool) -> None:
    found = exact(float(right), Evidence(patients))
    expected = stats.binomtest(patients * right, patients).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.method == f"exact, {patients} patients"


def test_scores_of_nothing_and_all_have_exact_intervals_over_the_patients_of_their_class() -> None:
    scores = score(_separated(8, 40, images=3), resamples=100, seed=0)
    assert (scores.sen.value, scores.sen.low, scores.sen.method) == (0, 0, "exact, 8 patients")
    assert scores.sen.high == pytest.approx(1 - 0.025 ** (1 / 8))  # 37 %: 0 of 8
    assert (scores.spe.value, scores.spe.high, scores.spe.method) == (1, 1, "exact, 40 patients")
    assert scores.spe.low == pytest.approx(0.025 ** (1 / 40))
    assert (scores.auc.value, scores.auc.method) == (1, "exact, 8 patients")
    assert scores.auc.low == pytest.approx(0.025 ** (1 / 8))
    assert scores.f1.low == 0 and scores.f1.high is not None and scores.f1.high < 1
    assert scores.ap == Estimate(1.0)
    assert scores.acc.method == "logit-t, 48 patients"


def test_no_interval_is_made_when_none_was_asked_for() -> None:
    scores = score(_separated(8, 40), resamples=0, seed=0)
    assert {item.method for item in vars(scores).values()} == {None}
    assert scores.sen == Estimate(0.0)


def test_exact_interval_of_f1_is_that_of_the_share_of_right_calls_among_all_that_count() -> None:
    perfect, nothing = exact_f1(1.0, Evidence(20)), exact_f1(0.0, Evidence(20))
    low = 0.025 ** (1 / 20)
    assert (perfect.low, perfect.high) == pytest.approx((2 * low / (1 + low), 1))
    assert (nothing.low, nothing.high) == pytest.approx((0, 2 * (1 - low) / (2 - low)))


def test_chance_of_complete_separation_is_at_most_that_of_the_exact_interval() -> None:
    """At the lower end of the interval for 5 and 20 patients, a worst case separates in less than 2.5 % of studies."""
    low = exact(1.0, Evidence(5)).low
    assert low is not None
    random = np.random.default_rng(0)
    failing = random.uniform(size=(20_000, 5)) > low  # a failing positive scores below all negatives: AUC = low
    assert (~failing).all(axis=1).mean() == pytest.approx(0.025, abs=0.004)
    shift = np.sqrt(2) * stats.norm.ppf(low)
    normal = [(random.normal(size=5) + shift).min() > random.normal(size=20).max() for _ in range(5000)]
    assert np.mean(normal) < 0.025


def test_interval_of_a_share_takes_students_t_of_the_smaller_class() -> None:
    random = np.random.default_rng(1)
    classes = np.repeat([1, 0], [6, 300])
    probabilities = expit(1.5 * classes + random.normal(size=306))
    predictions = Predictions(classes, probabilities, probabilities > 0.6, np.arange(306), np.zeros(306, np.int64))
    scores = score(predictions, resamples=300, seed=0)
    error = np.nanstd(resampled_aucs(predictions, resamples=300, seed=0), ddof=1) * np.sqrt(6 / 5)
    width = stats.t.ppf(0.975, 5) * error / (scores.auc.value * (1 - scores.auc.value))
    assert (scores.auc.low, scores.auc.high) == pytest.approx(
        tuple(expit(logit(scores.auc.value) + side * width) for side in (-1, 1))
    )
    methods = {name: item.method for name, item in vars(scores).items()}
    of_patients = {"acc": 306, "auc": 6, "ap": 6, "sen": 6, "spe": 300, "f1": 6, "f1_negative": 300}
    assert methods == {name: f"logit-t, {count} patients" for name, count in of_patients.items()}


def test_cross_validation_widens_by_the_correlation_of_nadeau_and_bengio() -> None:
    resampled = np.random.default_rng(2).normal(0.8, 0.03, 500)
    one, crossed = (estimate(0.8, resampled, Evidence(100, share)) for share in (1.0, 0.2))
    assert one.low is not None and crossed.low is not None
    assert logit(0.8) - logit(crossed.low) == pytest.approx(np.sqrt(1.8) * (logit(0.8) - logit(one.low)))
    assert crossed.method == "logit-t, 100 patients, cross-validated"
    exactly = exact(1.0, Evidence(100, 0.2))
    assert exactly.low == pytest.approx(0.025 ** (1.8 / 100))


@pytest.mark.parametrize(("repeats", "share"), [(1, 0.2), (3, 0.2)])
def test_repetitions_of_a_cross_validation_do_not_count_as_more_parts(repeats: int, share: float) -> None:
    random = np.random.default_rng(3)
    patients = np.tile(np.arange(50), repeats)
    parts = np.concatenate([5 * number + random.permutation(50) % 5 for number in range(repeats)])
    classes = patients % 2
    probabilities = expit(classes + random.normal(size=len(classes)))
    predictions = Predictions(classes, probabilities, probabilities > 0.6, patients, parts)
    found = score(predictions, resamples=200, seed=0).auc
    expected = estimate(found.value, resampled_aucs(predictions, resamples=200, seed=0), Evidence(25, share))
    assert found == expected


def test_one_patient_of_a_class_gives_no_standard_error() -> None:
    predictions = _separated(1, 30)
    tied = replace(predictions, probabilities=np.where(np.arange(31) < 5, 0.5, predictions.probabilities))
    assert score(tied, resamples=200, seed=0).auc.low is None
    assert estimate(0.5, np.full(100, np.nan), Evidence(30)) == Estimate(0.5)


def test_p_value_and_interval_of_a_difference_agree_with_students_t() -> None:
    resampled = np.random.default_rng(4).normal(0.05, 0.02, 400)
    error = resampled.std(ddof=1) * np.sqrt(12 / 11)  # of 12 patients, without the bootstrap's bias
    found = estimate_difference(Estimate(0.85), Estimate(0.80), np.append(resampled, np.nan), Evidence(12))
    assert found.p == pytest.approx(2 * stats.t.sf(0.05 / error, 11))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 11, loc=0.05, scale=error))
    assert found.method == "t, 12 patients"
    assert (found.low is not None and found.low > 0) == (found.p is not None and found.p < 0.05)


def test_difference_from_a_complete_separation_has_an_interval_from_both_scores() -> None:
    perfect = _separated(10, 60)
    random = np.random.default_rng(5)
    worse = replace(perfect, probabilities=expit(1.5 * perfect.classes + random.normal(size=70)))
    found = auc_difference(perfect, worse, resamples=300, seed=0)
    first, second = (score(item, resamples=300, seed=0).auc for item in (perfect, worse))
    assert first.low is not None and second.low is not None and second.high is not None
    assert found.low is not None and found.high is not None and found.p is not None
    assert found.method == "square-and-add, 10 patients"
    assert found.value - found.low == pytest.approx(np.hypot(1 - first.low, second.high - second.value))
    assert found.high - found.value == pytest.approx(second.value - second.low)
    assert (found.low > 0) == (found.p < 0.05)
    reverse = auc_difference(worse, perfect, resamples=300, seed=0)
    assert (reverse.low, reverse.high, reverse.p) == pytest.approx((-found.high, -found.low, found.p))
    assert auc_difference(perfect, perfect, resamples=300, seed=0).p == 1
    assert auc_difference(perfect, worse, resamples=0, seed=0) == Difference(found.value)
