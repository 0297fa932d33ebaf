import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evaluation.scores import auc_interval, score, weighted_aucs


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 60), levels=st.sampled_from([2, 5, 1000]))
def test_weighted_auc_is_sklearns_when_weights_are_multiplicities_and_scores_are_tied(
    seed: int, count: int, levels: int
) -> None:
    random = np.random.default_rng(seed)
    classes = np.array([0, 1, *random.integers(0, 2, count)])
    scores = random.integers(0, levels, len(classes)) / levels
    weights = random.integers(0, 4, (5, len(classes))).astype(np.float64)
    for weight, auc in zip(weights, weighted_aucs(classes, scores, weights), strict=True):
        if weight[classes == 1].sum() * weight[classes == 0].sum() == 0:
            assert np.isnan(auc)
        else:
            assert auc == pytest.approx(roc_auc_score(classes, scores, sample_weight=weight), abs=1e-12)


def test_scores_are_those_of_a_case_counted_by_hand() -> None:
    classes = np.array([1, 1, 1, 0, 0])
    probabilities = np.array([0.9, 0.8, 0.2, 0.6, 0.1])  # 2 of 3 diseased found, 1 of 2 healthy cleared
    scores = score(classes, probabilities, np.arange(5), resamples=0, seed=0)
    assert (scores.acc, scores.sen, scores.spe) == pytest.approx((3 / 5, 2 / 3, 1 / 2))
    assert scores.auc == pytest.approx(5 / 6)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.f1_negative == pytest.approx(1 / 2)
    assert scores.auc_low is scores.auc_high is None


def _clustered(seed: int, patients: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients of one class each whose images score nearly alike."""
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    classes = (np.arange(patients) % 2)[patient]
    scores = (random.normal(size=patients) + np.arange(patients) % 2)[patient] + 0.1 * random.normal(size=len(patient))
    return classes, scores, patient


def test_interval_covers_the_truth_as_often_as_it_says_when_images_cluster_by_patient() -> None:
    truth = 0.7586  # P(N(1, s) > N(0, s)) with s^2 = 1.01
    covered = {"patients": 0, "images": 0}
    for seed in range(100):
        classes, scores, patient = _clustered(seed, patients=80, images=6)
        for what, groups in (("patients", patient), ("images", np.arange(len(patient)))):
            low, high = auc_interval(classes, scores, groups, resamples=200, seed=seed)
            assert low is not None
            assert high is not None
            covered[what] += low <= truth <= high
    assert covered["patients"] >= 88
    assert covered["images"] < 75  # what resampling images would claim


def test_interval_is_the_same_for_a_seed() -> None:
    classes, scores, patient = _clustered(1, patients=40, images=2)
    first, again, other = (auc_interval(classes, scores, patient, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_interval_leaves_out_resamples_of_one_class() -> None:
    patient = np.array([0, 1])  # half of the resamples hold one patient twice
    assert auc_interval(patient, np.array([0.2, 0.8]), patient, resamples=500, seed=0) == (1.0, 1.0)
