from dataclasses import replace

import numpy as np

from evaluation.data.division import UNUSED
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.fitting.control_cases import shift_case, shuffled_over_all, shuffled_within_parts
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import search_serially
from evaluation.results.presets import PRESETS
from evaluation.results.scores import Estimate
from evaluation.scoring.probe_results import neighbors_auc, predict
from evaluation.scoring.scores import score
from evaluation.scoring.shift import shift_result
from tests.support.probe_cases import made_case, made_task


def fitted(*cases: ProbeCase) -> FittedCases:
    return {
        case: list(
            search_serially(
                {case.matrix.identity: case.matrix.values}, {item.name: item.problem for item in case.rounds()}
            ).values()
        )
        for case in cases
    }


def auc_of(case: ProbeCase, resamples: int = 0) -> Estimate:
    return score(predict(case, fitted(case)[case]), resamples=resamples, seed=0).auc


def test_shuffled_labels_keep_shares_and_patients_but_carry_no_information() -> None:
    case = made_case(rounds=2)
    dealt = shuffled_within_parts(case, seed=3)
    for before, after, fold in zip(case.classes, dealt.classes, case.folds, strict=True):
        for part in np.unique(fold):
            assert after[fold == part].mean() == before[fold == part].mean()  # patients have equally many images
        agree = np.mean(before == after)
        assert abs(agree - (before.mean() ** 2 + (1 - before.mean()) ** 2)) < 0.1
        spread = [np.ptp(after[case.patients == code]) for code in np.unique(case.patients)]
        assert np.mean(spread) == np.mean([np.ptp(before[case.patients == code]) for code in np.unique(case.patients)])
    assert not np.array_equal(dealt.classes[0], shuffled_within_parts(case, seed=4).classes[0])
    assert np.array_equal(dealt.classes, shuffled_within_parts(case, seed=3).classes)


def test_auc_of_shuffled_labels_is_one_half_when_the_features_reveal_the_class() -> None:
    case = replace(made_case(images=300), task=made_task(replace(PRESETS["gazda2021"], c_grid=(0.1, 1.0))))
    values = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    values[case.rows] += 3 * case.classes[0][:, None]
    case = replace(case, matrix=FeatureMatrix("values", values))
    aucs = []
    for seed in range(20):
        dealt = shuffled_within_parts(case, seed)
        fitted = search_serially({"values": values}, {item.name: item.problem for item in dealt.rounds()})
        aucs.append(score(predict(dealt, list(fitted.values())), resamples=200, seed=seed).auc)
    assert abs(np.mean([auc.value for auc in aucs]) - 0.5) < 0.07  # three standard errors
    assert sum((auc.low or 0) <= 0.5 <= (auc.high or 1) for auc in aucs) >= 16


def test_shuffled_labels_keep_both_classes_when_one_patient_has_most_images() -> None:
    case = made_case(rounds=1)
    patients = np.where(np.arange(len(case.patients)) % 10 == 0, case.patients, case.patients[case.folds[0] == 0][0])
    case = replace(case, patients=patients)
    dealt = shuffled_within_parts(case, seed=0)
    for part in np.unique(case.folds[0]):
        assert set(dealt.classes[0][case.folds[0] == part]) == {0, 1}


def test_patients_and_copies_get_the_same_classes_in_all_parts_when_labels_are_shuffled_over_all() -> None:
    case = made_case(rounds=2)
    groups = np.empty(600, np.int64)
    groups[case.rows] = case.patients // 2  # every second patient is a copy of the one before
    case = replace(case, task=made_task(groups=groups))
    dealt = shuffled_over_all(case, seed=0)
    assert dealt is not None
    assert np.array_equal(dealt.classes[0], dealt.classes[1])
    assert dealt.classes[0].sum() == case.classes[0].sum()  # groups have equally many images
    kept = {tuple(case.classes[0][case.patients // 2 == code]) for code in range(100)}
    assert {tuple(dealt.classes[0][case.patients // 2 == code]) for code in range(100)} <= kept
    again, other = (shuffled_over_all(case, seed) for seed in (0, 1))
    assert again is not None
    assert other is not None
    assert np.array_equal(dealt.classes, again.classes)
    assert not np.array_equal(dealt.classes, other.classes)


def test_labels_are_not_shuffled_over_all_when_a_part_would_have_one_class() -> None:
    case = replace(made_case(), task=made_task(groups=np.zeros(600, np.int64)))
    assert shuffled_over_all(replace(case, classes=np.zeros_like(case.classes)), seed=0) is None


def planted_leak(*, copies: bool, size: int = 256) -> ProbeCase:
    """Noise for features; if asked for, every test image is a copy of a development image under another patient."""
    random = np.random.default_rng(1)
    values, classes = random.normal(size=(250, size)), random.integers(0, 2, 250)
    groups = np.arange(250)
    if copies:
        values[200:], classes[200:], groups[200:] = values[:50], classes[:50], groups[:50]
    preset = replace(PRESETS["gazda2021"], c_grid=(1.0,))
    return replace(
        made_case(),
        task=made_task(preset, groups),
        matrix=FeatureMatrix(f"leak {copies}", values.astype(np.float32)),
        rows=np.arange(250),
        patients=np.arange(250),
        classes=classes[None],
        folds=np.where(np.arange(250) < 200, np.arange(250) % 5, -1)[None],
    )


def test_copies_in_both_parts_show_when_labels_are_shuffled_over_all_and_not_within_each_part() -> None:
    leak, honest = planted_leak(copies=True), planted_leak(copies=False)
    assert auc_of(leak).value > 0.95  # of noise
    within, over_all, without = (
        [shuffle(case, seed) for seed in range(4)]
        for shuffle, case in (
            (shuffled_within_parts, leak),
            (shuffled_over_all, leak),
            (shuffled_over_all, honest),
        )
    )
    means = [
        np.mean([auc_of(case).value for case in cases if case is not None]) for cases in (within, over_all, without)
    ]
    assert means[1] > 0.95
    assert abs(means[0] - 0.5) < 0.17  # four standard errors
    assert abs(means[2] - 0.5) < 0.17
    assert over_all[0] is not None
    assert neighbors_auc(over_all[0]) == 1


def shifted(shift: float) -> ProbeCase:
    """An official split whose healthy test images differ from the healthy development images by `shift`."""
    case = made_case()
    values = np.random.default_rng(2).normal(size=(600, 8)).astype(np.float32)
    moved = (case.folds[0] == -1) & (case.classes[0] == 0)
    values[case.rows[moved], 0] += shift
    return replace(case, matrix=FeatureMatrix(f"shifted by {shift}", values))


def test_parts_that_are_drawn_alike_are_not_told_apart_and_others_are_in_their_class() -> None:
    for case, code, is_shown in ((shifted(3), 0, True), (shifted(3), 1, False), (shifted(0), 0, False)):
        shift = shift_case(case, code, seed=0)
        assert shift is not None
        result = shift_result(shift, fitted(shift.case, shift.null), resamples=200, seed=0)
        assert (result.auc.value > 0.9, result.is_shown) == (is_shown, is_shown)
        assert 0.3 < result.null.value < 0.7
        assert result.group == ("NORMAL", "PNEUMONIA")[code]
        assert (result.development, result.test) == tuple(
            np.sum((case.classes[0] == code) & inside) for inside in (case.folds[0] >= 0, case.folds[0] == -1)
        )


def test_parts_are_told_apart_by_patients_that_are_each_tested_once() -> None:
    case = made_case()
    case = replace(case, folds=np.where(case.patients % 7 == 0, UNUSED, case.folds))
    shift = shift_case(case, 1, seed=0)
    assert shift is not None
    for parts in (shift.case, shift.null):
        assert np.array_equal((parts.folds == -1).sum(axis=0), np.ones(len(parts.rows)))
        assert not np.any(parts.patients % 7 == 0)
        for of_patient in (parts.patients == code for code in np.unique(parts.patients)):
            assert len(set(parts.classes[0][of_patient])) == len(set(parts.folds[0][of_patient])) == 1
    assert shift.case.classes[0].sum() < len(shift.case.rows) / 2  # the test part
    assert set(shift.case.rows) == set(case.rows[(case.classes[0] == 1) & (case.folds[0] != UNUSED)])
    few = replace(case, folds=np.where((case.folds == -1) & (case.patients > 60), UNUSED, case.folds))
    assert shift_case(few, 1, seed=0) is None
