from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from evaluation.data.cohort import Cohort
from evaluation.data.division import UNUSED, divide
from evaluation.data.feature_matrix import FeatureMatrix, attributes, border
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.probe_cases import ProbeCase, few_labels_case, shuffled_case
from evaluation.fitting.search import search_serially
from evaluation.results.presets import PRESETS, Preset
from evaluation.results.tasks import BUILT_IN
from evaluation.scoring.probe_results import predict
from evaluation.scoring.scores import score
from infra.rng import permutation
from tests.support.probe_results import made_dataset
from tests.support.sample_records import cell_samples


def task(preset: Preset = PRESETS["rigorous"]) -> ProbeTask:
    """A task whose images and parts are given in the cases."""
    nothing = np.empty(0, np.int64)
    [task] = BUILT_IN["cell"]
    cohort = Cohort("cell", task, task.questions[0], nothing, nothing, nothing, nothing[None], "official", {})
    return ProbeTask(cast("LabeledSet", None), cohort, preset, made_dataset("rigorous"))


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
    matrix = FeatureMatrix("random", random.normal(size=(images, 4)).astype(np.float32))
    rows = permutation(images, 0, "rows")
    return ProbeCase(
        task(), "epoch 1", "checkpoint", 1.0, 5, matrix, rows, patients,
        np.tile(classes, (rounds, 1)), np.stack(folds),
    )  # fmt: skip


def test_shuffled_labels_keep_shares_and_patients_but_carry_no_information() -> None:
    case = made(rounds=2)
    dealt = shuffled_case(case, seed=3)
    for before, after, fold in zip(case.classes, dealt.classes, case.folds, strict=True):
        for part in np.unique(fold):
            assert after[fold == part].mean() == before[fold == part].mean()  # patients have equally many images
        agree = np.mean(before == after)
        assert abs(agree - (before.mean() ** 2 + (1 - before.mean()) ** 2)) < 0.1
        spread = [np.ptp(after[case.patients == code]) for code in np.unique(case.patients)]
        assert np.mean(spread) == np.mean([np.ptp(before[case.patients == code]) for code in np.unique(case.patients)])
    assert not np.array_equal(dealt.classes[0], shuffled_case(case, seed=4).classes[0])
    assert np.array_equal(dealt.classes, shuffled_case(case, seed=3).classes)


def test_auc_of_shuffled_labels_is_one_half_when_the_features_reveal_the_class() -> None:
    case = replace(made(images=300), task=task(replace(PRESETS["gazda2021"], c_grid=(0.1, 1.0))))
    values = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    values[case.rows] += 3 * case.classes[0][:, None]
    case = replace(case, matrix=FeatureMatrix("values", values))
    aucs = []
    for seed in range(20):
        dealt = shuffled_case(case, seed)
        fitted = search_serially({"values": values}, {item.name: item.problem for item in dealt.rounds()})
        aucs.append(score(predict(dealt, list(fitted.values())), resamples=200, seed=seed).auc)
    assert abs(np.mean([auc.value for auc in aucs]) - 0.5) < 0.07  # three standard errors
    assert sum((auc.low or 0) <= 0.5 <= (auc.high or 1) for auc in aucs) >= 16


def test_shuffled_labels_keep_both_classes_when_one_patient_has_most_images() -> None:
    case = made(rounds=1)
    patients = np.where(np.arange(len(case.patients)) % 10 == 0, case.patients, case.patients[case.folds[0] == 0][0])
    case = replace(case, patients=patients)
    dealt = shuffled_case(case, seed=0)
    for part in np.unique(case.folds[0]):
        assert set(dealt.classes[0][case.folds[0] == part]) == {0, 1}


@pytest.mark.parametrize("rounds", [1, 5])
def test_few_labels_are_of_some_development_patients_of_both_classes_and_the_test_part_stays(rounds: int) -> None:
    case = made(rounds=rounds)
    smaller, larger = few_labels_case(case, 10, seed=0), few_labels_case(case, 25, seed=0)
    assert smaller is not None
    assert larger is not None
    assert len(smaller.folds) == 5  # draws of one part, or parts
    for number, (few, more, classes) in enumerate(zip(smaller.folds, larger.folds, smaller.classes, strict=True)):
        before = case.folds[number if rounds > 1 else 0]
        assert np.array_equal(few == -1, before == -1)
        assert set(case.patients[few >= 0]) <= set(case.patients[more >= 0])
        assert len(set(case.patients[few >= 0])) == pytest.approx(0.1 * len(set(case.patients[before >= 0])), abs=2)
        for patient in set(case.patients[few >= 0]):
            assert len(set(few[case.patients == patient])) == 1
        for fold in range(3):
            assert set(classes[few == fold]) == {0, 1}
    first = next(smaller.rounds())
    assert len(first.problem.rows) == (smaller.folds[0] != UNUSED).sum()
    assert not np.array_equal(smaller.folds[0], smaller.folds[1])


def test_few_labels_are_refused_when_there_are_too_few_patients_of_a_class() -> None:
    case = made()
    sick = (case.patients < 2).astype(np.int64)[None]
    assert few_labels_case(replace(case, classes=sick), 10, seed=0) is None


def test_identity_of_a_problem_changes_with_all_that_its_outcome_depends_on() -> None:
    case = made(rounds=2)
    others = [
        case,
        shuffled_case(case, seed=0),
        replace(case, task=task(PRESETS["gazda2021"])),
        replace(case, matrix=FeatureMatrix("other", case.matrix.values)),
        replace(case, rows=case.rows[::-1]),
    ]
    identities = [identity for other in others for _, identity, _ in other.rounds()]
    assert len(set(identities)) == len(identities) == 10
    assert identities == [identity for other in others for _, identity, _ in other.rounds()]


def test_border_is_the_outer_three_pixels() -> None:
    pixels = np.zeros((2, 32, 32), np.float32)
    pixels[:, 3:-3, 3:-3] = 1
    result = border(FeatureMatrix("pixels", pixels.reshape(2, -1)))
    assert result.values.shape == (2, 32 * 32 - 26 * 26)
    assert not result.values.any()


def test_attributes_are_none_when_all_images_of_the_task_have_the_same() -> None:
    data = cell_samples(["a", "b", "c"], [True, False, True])
    assert attributes(data, np.arange(3)) is None
    data.ages[2] = 40.0
    data.sexes[:] = ["F", "M", "F"]
    result = attributes(data, np.arange(3))
    assert result is not None
    assert result.values.shape == (3, 4)  # two sexes, the age, whether it is known
    assert attributes(data, np.array([0])) is None
