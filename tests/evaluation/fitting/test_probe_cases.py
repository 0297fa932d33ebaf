from dataclasses import replace

import numpy as np
import pytest

from evaluation.data.feature_sources import FeatureMatrix, attributes, border
from evaluation.data.protocol import divide
from evaluation.fitting.probe_cases import UNUSED, ProbeCase, few_labels_case, shuffled_case
from evaluation.fitting.search import search_serially
from evaluation.results.presets import PRESETS
from evaluation.scoring import probe_results as scoring
from evaluation.scoring.scores import score
from infra.rng import permutation
from tests.support.sample_records import cell_samples


def made(images: int = 600, rounds: int = 1, sick: float = 0.4) -> ProbeCase:
    """Patients of three images and mostly one class; in each round other fifths are tested and folded."""
    random = np.random.default_rng(0)
    patients = np.arange(images) // 3
    classes = (random.random(images // 3)[patients] < sick).astype(np.int64) ^ (random.random(images) < 0.1)
    folds = []
    for number in range(rounds):
        fold = divide(classes, patients, 5, number, "test") - 1
        fold[fold >= 0] = divide(classes[fold >= 0], patients[fold >= 0], 4, 0, "inner")
        folds.append(fold)
    stored = FeatureMatrix("random", random.normal(size=(images, 4)).astype(np.float32))
    rows = permutation(images, 0, "rows")
    return ProbeCase(
        "cell", "rigorous", PRESETS["rigorous"], "epoch 1", "checkpoint", 1.0, 5, stored, rows, patients,
        np.tile(classes, (rounds, 1)), np.stack(folds),
    )  # fmt: skip


def test_shuffled_labels_keep_shares_and_patients_but_tell_nothing() -> None:
    one = made(rounds=2)
    dealt = shuffled_case(one, seed=3)
    for before, after, fold in zip(one.classes, dealt.classes, one.folds, strict=True):
        for part in np.unique(fold):
            assert after[fold == part].mean() == before[fold == part].mean()  # patients have equally many images
        agree = np.mean(before == after)
        assert abs(agree - (before.mean() ** 2 + (1 - before.mean()) ** 2)) < 0.1
        spread = [np.ptp(after[one.patients == code]) for code in np.unique(one.patients)]
        assert np.mean(spread) == np.mean([np.ptp(before[one.patients == code]) for code in np.unique(one.patients)])
    assert not np.array_equal(dealt.classes[0], shuffled_case(one, seed=4).classes[0])
    assert np.array_equal(dealt.classes, shuffled_case(one, seed=3).classes)


def test_auc_of_shuffled_labels_is_one_half_when_the_features_tell_the_class() -> None:
    one = replace(made(images=300), preset=replace(PRESETS["gazda2021"], c_grid=(0.1, 1.0)))
    told = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    told[one.rows] += 3 * one.classes[0][:, None]
    one = replace(one, stored=FeatureMatrix("told", told))
    found = []
    for seed in range(20):
        dealt = shuffled_case(one, seed)
        solved = search_serially({"told": told}, {name: problem for name, _, problem in dealt.problems()})
        found.append(score(scoring.predictions(dealt, list(solved.values())), resamples=200, seed=seed).auc)
    assert abs(np.mean([one.value for one in found]) - 0.5) < 0.07  # three standard errors
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 16  # type: ignore[operator]


def test_shuffled_labels_keep_both_classes_when_one_patient_has_most_images() -> None:
    one = made(rounds=1)
    patients = np.where(np.arange(len(one.patients)) % 10 == 0, one.patients, one.patients[one.folds[0] == 0][0])
    one = ProbeCase(**{**one.__dict__, "patients": patients})
    dealt = shuffled_case(one, seed=0)
    for part in np.unique(one.folds[0]):
        assert set(dealt.classes[0][one.folds[0] == part]) == {0, 1}


@pytest.mark.parametrize("rounds", [1, 5])
def test_few_labels_are_of_some_development_patients_of_both_classes_and_the_test_part_stays(rounds: int) -> None:
    one = made(rounds=rounds)
    smaller, larger = few_labels_case(one, 10, seed=0), few_labels_case(one, 25, seed=0)
    assert smaller is not None
    assert larger is not None
    assert len(smaller.folds) == 5  # draws of one part, or parts
    for number, (few, more, classes) in enumerate(zip(smaller.folds, larger.folds, smaller.classes, strict=True)):
        before = one.folds[number if rounds > 1 else 0]
        assert np.array_equal(few == -1, before == -1)
        assert set(one.patients[few >= 0]) <= set(one.patients[more >= 0])
        assert len(set(one.patients[few >= 0])) == pytest.approx(0.1 * len(set(one.patients[before >= 0])), abs=2)
        for patient in set(one.patients[few >= 0]):
            assert len(set(few[one.patients == patient])) == 1
        for fold in range(3):
            assert set(classes[few == fold]) == {0, 1}
    _, _, problem = next(smaller.problems())
    assert len(problem.rows) == (smaller.folds[0] != UNUSED).sum()
    assert not np.array_equal(smaller.folds[0], smaller.folds[1])


def test_few_labels_are_refused_when_there_are_too_few_patients_of_a_class() -> None:
    one = made()
    sick = (one.patients < 2).astype(np.int64)[None]
    assert few_labels_case(ProbeCase(**{**one.__dict__, "classes": sick}), 10, seed=0) is None


def test_identity_of_a_problem_changes_with_all_that_its_outcome_depends_on() -> None:
    one = made(rounds=2)
    others = [
        one,
        shuffled_case(one, seed=0),
        ProbeCase(**{**one.__dict__, "preset": PRESETS["gazda2021"]}),
        ProbeCase(**{**one.__dict__, "stored": FeatureMatrix("other", one.stored.values)}),
        ProbeCase(**{**one.__dict__, "rows": one.rows[::-1]}),
    ]
    identities = [identity for other in others for _, identity, _ in other.problems()]
    assert len(set(identities)) == len(identities) == 10
    assert identities == [identity for other in others for _, identity, _ in other.problems()]


def test_border_is_the_outer_three_pixels() -> None:
    pixels = np.zeros((2, 32, 32), np.float32)
    pixels[:, 3:-3, 3:-3] = 1
    found = border(FeatureMatrix("pixels", pixels.reshape(2, -1)))
    assert found.values.shape == (2, 32 * 32 - 26 * 26)
    assert not found.values.any()


def test_attributes_are_none_when_all_images_of_the_task_have_the_same() -> None:
    data = cell_samples(["a", "b", "c"], [True, False, True])
    assert attributes(data, np.arange(3)) is None
    data.ages[2] = 40.0
    data.sexes[:] = ["F", "M", "F"]
    found = attributes(data, np.arange(3))
    assert found is not None
    assert found.values.shape == (3, 4)  # two sexes, the age, whether it is known
    assert attributes(data, np.array([0])) is None
