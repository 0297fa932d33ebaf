from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn import metrics

from evaluation.results.scores import Difference
from evaluation.scoring.scores import (
    Predictions,
    auc_difference,
    image_weights,
    resampled_aucs,
    score,
    weighted_aucs,
    weighted_scores,
)


def _random(seed: int, count: int, levels: int) -> Predictions:
    """Return images of both classes; with fewer levels, more probabilities are tied."""
    random = np.random.default_rng(seed)
    classes = np.array([0, 1, *random.integers(0, 2, count)])
    probabilities = random.integers(0, levels + 1, len(classes)) / levels
    return Predictions(
        classes, probabilities, probabilities > random.random(), np.arange(len(classes)), np.zeros_like(classes)
    )


def _shift(auc: float) -> float:
    """Return the distance of positives and negatives in standard deviations."""
    return float(np.sqrt(2) * norm.ppf(auc))


def _clustered(seed: int, patients: int, images: int, auc: float = 0.85) -> Predictions:
    """Patients of one class each whose images score nearly alike: nine tenths of the variance lie between patients."""
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    classes = patient % 2
    between, within = random.normal(size=patients)[patient], random.normal(size=len(patient))
    values = _shift(auc) * (classes - 0.5) + np.sqrt(0.9) * between + np.sqrt(0.1) * within
    return Predictions(classes, expit(values), values > 0, patient, np.zeros_like(patient))


SKLEARN = {
    "acc": metrics.accuracy_score,
    "sen": lambda *args, **more: metrics.recall_score(*args, pos_label=1, zero_division=0, **more),
    "spe": lambda *args, **more: metrics.recall_score(*args, pos_label=0, zero_division=0, **more),
    "f1": lambda *args, **more: metrics.f1_score(*args, pos_label=1, zero_division=0, **more),
    "f1_negative": lambda *args, **more: metrics.f1_score(*args, pos_label=0, zero_division=0, **more),
}
RANKING = {"auc": metrics.roc_auc_score, "ap": metrics.average_precision_score}

cases = {
    "seed": st.integers(0, 2**31),
    "count": st.integers(0, 60),
    "levels": st.sampled_from([1, 2, 5, 1000]),
}


@settings(max_examples=25)
@given(**cases)
def test_scores_are_sklearns_when_there_is_one_part(seed: int, count: int, levels: int) -> None:
    predictions = _random(seed, count, levels)
    scores = score(predictions, resamples=0, seed=0)
    for name, of_sklearn in RANKING.items():
        expected = of_sklearn(predictions.classes, predictions.probabilities)
        assert getattr(scores, name).value == pytest.approx(expected, abs=1e-12)
    for name, of_sklearn in SKLEARN.items():
        assert getattr(scores, name).value == pytest.approx(
            of_sklearn(predictions.classes, predictions.decisions), abs=1e-12
        )


@settings(max_examples=12)
@given(**cases)
def test_figures_are_sklearns_when_images_are_weighted(seed: int, count: int, levels: int) -> None:
    predictions = _random(seed, count, levels)
    weights = np.random.default_rng(seed).integers(0, 3, (3, len(predictions.classes))).astype(np.float64)
    result = weighted_scores(predictions, weights)
    for row, weight in enumerate(weights):
        if weight[predictions.classes == 1].sum() * weight[predictions.classes == 0].sum() == 0:
            assert all(np.isnan(values[row]) for values in result.values())
            continue
        for name, of_sklearn in RANKING.items():
            expected = of_sklearn(predictions.classes, predictions.probabilities, sample_weight=weight)
            assert result[name][row] == pytest.approx(expected, abs=1e-12)
        for name, of_sklearn in SKLEARN.items():
            expected = of_sklearn(predictions.classes, predictions.decisions, sample_weight=weight)
            assert result[name][row] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(**cases, parts=st.integers(1, 5))
def test_auc_over_parts_is_the_share_of_concordant_pairs_within_a_part(
    seed: int, count: int, levels: int, parts: int
) -> None:
    predictions = _random(seed, count, levels)
    predictions = replace(predictions, parts=np.array([0, 0, *np.random.default_rng(seed).integers(0, parts, count)]))
    concordant, pairs = 0.0, 0
    for positive in np.flatnonzero(predictions.classes == 1):
        for negative in np.flatnonzero((predictions.classes == 0) & (predictions.parts == predictions.parts[positive])):
            above = predictions.probabilities[positive] - predictions.probabilities[negative]
            concordant += 1.0 if above > 0 else 0.5 if above == 0 else 0.0
            pairs += 1
    assert score(predictions, resamples=0, seed=0).auc.value == pytest.approx(concordant / pairs, abs=1e-12)


def test_auc_over_parts_does_not_see_that_a_part_is_on_another_scale() -> None:
    predictions = _clustered(0, patients=40, images=2)
    predictions = replace(predictions, parts=predictions.patients // 2 % 2)
    moved = replace(
        predictions,
        probabilities=np.where(predictions.parts == 1, predictions.probabilities / 100, predictions.probabilities),
    )
    assert score(moved, resamples=200, seed=0) == score(predictions, resamples=200, seed=0)
    in_one = [
        score(replace(scored, parts=0 * scored.parts), resamples=0, seed=0).auc.value for scored in (predictions, moved)
    ]
    assert in_one[0] != pytest.approx(in_one[1], abs=0.01)


def test_predictions_of_an_image_in_several_parts_count_once() -> None:
    once = _clustered(1, patients=40, images=2)
    twice = once.of(np.tile(np.arange(80), 2))
    twice = replace(twice, parts=np.repeat([0, 1], 80))
    assert score(twice, resamples=200, seed=0) == score(once, resamples=200, seed=0)


def test_scores_are_those_of_a_case_counted_by_hand() -> None:
    classes = np.array([1, 1, 1, 0, 0])
    probabilities = np.array([0.9, 0.8, 0.2, 0.6, 0.1])  # 2 of 3 diseased found, 1 of 2 healthy cleared
    predictions = Predictions(classes, probabilities, probabilities > 0.5, np.arange(5), np.zeros(5, np.int64))
    scores = score(predictions, resamples=0, seed=0)
    assert (scores.acc.value, scores.sen.value, scores.spe.value) == pytest.approx((3 / 5, 2 / 3, 1 / 2))
    assert scores.auc.value == pytest.approx(5 / 6)
    assert (scores.auc.low, scores.auc.high) == (None, None)
    assert scores.f1.value == pytest.approx(2 / 3)
    assert scores.f1_negative.value == pytest.approx(1 / 2)


def test_score_refuses_parts_of_one_class_each() -> None:
    predictions = _clustered(0, patients=20, images=2)
    with pytest.raises(AssertionError, match="both classes"):
        score(replace(predictions, parts=predictions.classes), resamples=0, seed=0)


def test_intervals_hold_their_value_and_are_the_same_for_a_seed() -> None:
    predictions = _clustered(1, patients=40, images=2)
    first, again, other = (score(predictions, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    for name in (*SKLEARN, *RANKING):
        estimate = getattr(first, name)
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1, name


def test_resamples_of_one_class_are_left_out() -> None:
    patients = np.array([0, 1])  # half of the resamples hold one patient twice
    predictions = Predictions(patients, np.array([0.2, 0.8]), patients == 1, patients, np.zeros(2, np.int64))
    assert 0.4 < np.isnan(resampled_aucs(predictions, resamples=500, seed=0)).mean() < 0.6


def test_patients_are_drawn_whole_and_as_many_as_there_are() -> None:
    patients = np.array([7, 3, 3, 7, 100, 3])
    weights = np.concatenate(list(image_weights(patients, resamples=2000, seed=0)))
    assert weights.shape == (2000, 6)
    assert (weights[:, [0, 1, 4]].sum(axis=1) == 3).all()
    assert (weights[:, [1, 1, 0]] == weights[:, [2, 5, 3]]).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.07)
    assert Counter(weights[:, 4])[3.0] / 2000 == pytest.approx(1 / 27, abs=0.02)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time() -> None:
    predictions = _clustered(2, patients=1000, images=2)  # 600 resamples of 2,000 images take more than one chunk
    many = resampled_aucs(predictions, resamples=600, seed=5)
    chunks = list(image_weights(predictions.patients, resamples=600, seed=5))
    assert len(chunks) > 1
    assert (many[:50] == resampled_aucs(predictions, resamples=50, seed=5)).all()
    assert (many[-20:] == weighted_aucs(predictions, chunks[-1][-20:])).all()


def test_resamples_are_the_same_for_every_feature_set_of_the_same_patients() -> None:
    predictions = _clustered(3, patients=30, images=2)
    monotone = replace(predictions, probabilities=predictions.probabilities**3, decisions=~predictions.decisions)
    assert (resampled_aucs(predictions, resamples=50, seed=0) == resampled_aucs(monotone, resamples=50, seed=0)).all()


def test_difference_of_equal_probes_is_nothing() -> None:
    predictions = _clustered(4, patients=40, images=2)
    found = auc_difference(predictions, predictions, resamples=200, seed=0)
    assert found == Difference(0.0, 0.0, 0.0, "t, 20 patients", 1.0)
    assert auc_difference(predictions, predictions, resamples=0, seed=0) == Difference(0.0)


def test_difference_is_more_precise_when_patients_are_drawn_in_pairs() -> None:
    one = _clustered(5, patients=60, images=2)
    noise = 0.5 * np.random.default_rng(5).normal(size=120)
    other = replace(one, probabilities=expit(np.log(one.probabilities / (1 - one.probabilities)) + noise))
    paired = auc_difference(one, other, resamples=1000, seed=0)
    assert paired.value == score(one, resamples=0, seed=0).auc.value - score(other, resamples=0, seed=0).auc.value
    unpaired = resampled_aucs(one, resamples=1000, seed=0) - resampled_aucs(other, resamples=1000, seed=1)
    low, high = np.nanpercentile(unpaired, [2.5, 97.5])
    assert paired.low is not None
    assert paired.high is not None
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.7 * (high - low)


@pytest.mark.parametrize("name", ["classes", "patients", "parts"])
def test_difference_is_refused_when_the_images_differ(name: str) -> None:
    predictions = _clustered(6, patients=40, images=2)
    with pytest.raises(AssertionError, match=name):
        auc_difference(
            predictions, replace(predictions, **{name: getattr(predictions, name)[::-1] + 1}), resamples=0, seed=0
        )
