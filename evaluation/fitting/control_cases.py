"""Controls made of labels or parts: shuffled labels, the dataset of an image, and its official part."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from evaluation.data.division import UNUSED, divide
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.probe_cases import ProbeCase, derived_case
from infra.arrays import Bool, Int64
from infra.rng import permutation

_ATTEMPTS: Final = 100  # at a deal in which each part has both classes
_SHIFT_IMAGES: Final = 5000  # bounds the cost of telling parts apart
_SHIFT_ROUNDS: Final = 5
_SHIFT_FOLDS: Final = 2  # only for the fields of a fitted probe: the grid has one C
_SHIFT_PATIENTS: Final = 10  # fewest of a part and class: two in each round's test
_SHIFT_C: Final = 0.01


def shuffled_within_parts(case: ProbeCase, seed: int) -> ProbeCase:
    """Return the case with the classes dealt to other patients of the same part; its AUC must be about 0.5.

    Within each fold and the test part, a patient gets the classes of another patient's images. So parts keep their
    shares of the classes, and the images of a patient stay alike. The classes of two parts have nothing to do with each
    other, not even for copies of one image. So this finds code that reads labels of the test part, and nothing else.
    """
    classes = np.stack(
        [
            _deal_within_parts(*pair, case.patients, seed, number)
            for number, pair in enumerate(zip(case.classes, case.folds, strict=True))
        ]
    )
    shuffled = derived_case(case, f"{case.name}, labels shuffled within each part", "shuffled")
    return replace(shuffled, classes=classes, tests_every_c=False)


def _deal_within_parts(classes: Int64, fold: Int64, patients: Int64, seed: int, number: int) -> Int64:
    dealt = classes.copy()
    for part in np.unique(fold):
        inside = np.flatnonzero(fold == part)
        images = [inside[members] for members in _members(patients[inside])]
        for attempt in range(_ATTEMPTS):  # a part in which one patient has most images may come out with one class
            _deal(classes, dealt, images, permutation(len(images), seed, f"probe-shuffle-{part}", number, attempt))
            if len(np.unique(dealt[inside])) == 2:
                break
        else:
            dealt[inside] = classes[inside][permutation(len(inside), seed, "probe-shuffle-images", number)]
    return dealt


def shuffled_over_all(case: ProbeCase, seed: int) -> ProbeCase | None:
    """Return the case with the classes dealt once over the whole cohort; its AUC must be about 0.5.

    Images that share a patient or a picture, as the audit finds it, get the classes of one other such group, also if
    they are in two parts. So a patient or a copy on both sides of the split raises the AUC: of the nearest neighbors
    most, since these remember single images.

    Returns:
        The case, None if a part would have one class only.
    """
    used = (case.folds != UNUSED).any(axis=0)
    images = [np.flatnonzero(used)[members] for members in _members(case.task.groups[case.rows[used]])]
    classes = case.classes[0]
    dealt = classes.copy()
    for attempt in range(_ATTEMPTS):
        _deal(classes, dealt, images, permutation(len(images), seed, "probe-shuffle-all", 0, attempt))
        parts = (dealt[fold == part] for fold in case.folds for part in np.unique(fold[fold != UNUSED]))
        if all(len(np.unique(part)) == 2 for part in parts):
            shuffled = derived_case(case, f"{case.name}, labels shuffled over all patients", "shuffled_over_all")
            return replace(shuffled, classes=np.tile(dealt, (len(case.folds), 1)), tests_every_c=False)
    return None


def _members(codes: Int64) -> list[Int64]:
    """Return the positions of each code, in the order of the codes."""
    order = np.argsort(codes, kind="stable")
    members: list[Int64] = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return members if len(codes) else []


def _deal(classes: Int64, dealt: Int64, images: Sequence[Int64], order: Int64) -> None:
    """Write to `dealt` the classes of each patient's images to those of another patient."""
    for receiver, giver in zip(images, order, strict=True):
        dealt[receiver] = np.resize(classes[images[giver]], len(receiver))


def dataset_source_case(
    case: ProbeCase, tasks: Sequence[ProbeTask], matrices: Mapping[str, FeatureMatrix], stacked: FeatureMatrix
) -> ProbeCase:
    """Return the case that tells the images of a dataset from those of other datasets.

    Args:
        case: names the features and the dataset
        tasks: one task of each dataset
        matrices: these features of each dataset, by its label
        stacked: the same features stacked in that order
    """
    starts = _starts(matrices)
    rows, patients, classes, folds = [], [], [], []
    for number, task in enumerate(tasks):
        cohort = task.cohort
        rows.append(cohort.rows + starts[task.labeled_set.label])
        patients.append(cohort.patients * len(tasks) + number)
        classes.append(np.full(len(cohort.rows), int(task is case.task)))
        folds.append(cohort.folds[0])
    return replace(
        derived_case(case, f"{case.name}, this dataset or another", "source", stacked),
        rows=np.concatenate(rows),
        patients=np.concatenate(patients),
        classes=np.concatenate(classes)[None],
        folds=np.concatenate(folds)[None],
        tests_every_c=False,
    )


def _starts(matrices: Mapping[str, FeatureMatrix]) -> dict[str, int]:
    """Return the first row of each dataset when their matrices are stacked."""
    sizes = [len(matrix.values) for matrix in matrices.values()]
    return {label: sum(sizes[:number]) for number, label in enumerate(matrices)}


class ShiftCase(NamedTuple):
    """Cases that tell the test part from the development part, among images of one class.

    Attributes:
        whole: the case that has the features
        group: name of the class
        case: the parts as they are
        null: as many patients drawn at random instead of the tested ones
    """

    whole: ProbeCase
    group: str
    case: ProbeCase
    null: ProbeCase


def shift_case(whole: ProbeCase, code: int, seed: int) -> ShiftCase | None:
    """Return the cases that ask whether two parts, official ones or two sets, show one class in the same way.

    Patients are kept whole, and each is tested once, in five rounds; a large class is cut to 5,000 images. Features are
    scaled and C is 0.01 whatever the preset, because the parts are asked about and not the protocol.

    Args:
        whole: a case with one test part
        code: the class, 1 positive or 0 negative
        seed: determines the rounds and the null

    Returns:
        The cases, None if a part has too few patients of the class.
    """
    inside = _some_patients(whole, code, seed)
    patients, in_test = whole.patients[inside], whole.folds[0][inside] == -1
    members = _members(patients)
    is_tested = np.array([in_test[of_patient[0]] for of_patient in members], np.bool_)
    if min(is_tested.sum(), (~is_tested).sum()) < _SHIFT_PATIENTS:
        return None
    at_random = np.empty_like(in_test)
    for of_patient, drawn in zip(members, is_tested[permutation(len(members), seed, "probe-shift-null")], strict=True):
        at_random[of_patient] = drawn
    group = whole.task.record.class_name(code)
    cases = [
        _parts_case(whole, f"{whole.name}, {what} among {group}", inside, part, seed)
        for what, part in ((_part_name(whole), in_test), ("random part", at_random))
    ]
    [case, null] = cases
    return None if case is None or null is None else ShiftCase(whole, group, case, null)


def _part_name(case: ProbeCase) -> str:
    return "tested set" if case.task.cohort.is_external else "official test part"


def _some_patients(case: ProbeCase, code: int, seed: int) -> Int64:
    """Return the positions of a class's images, of as many patients as fit the bound."""
    inside = np.flatnonzero((case.classes[0] == code) & (case.folds[0] != UNUSED))
    members = _members(case.patients[inside])
    order = permutation(len(members), seed, "probe-shift-patients")
    fitting = order[np.cumsum([len(members[number]) for number in order]) <= _SHIFT_IMAGES]
    return inside[np.sort(np.concatenate([inside[:0], *(members[number] for number in fitting)]))]


def _parts_case(whole: ProbeCase, name: str, inside: Int64, in_part: Bool, seed: int) -> ProbeCase | None:
    """Return the case that tells the images (n,) in a part from the others; None if a fold has one kind only."""
    classes, patients = in_part.astype(np.int64), whole.patients[inside]
    folds = np.stack(list(_rounds(classes, patients, seed)))
    parts = (classes[fold == part] for fold in folds for part in np.unique(fold))
    if any(len(np.unique(part)) == 1 for part in parts):
        return None
    preset = replace(
        whole.preset,
        c_grid=(_SHIFT_C,),
        max_iterations=1000,
        standardize=True,
        chooses_threshold=False,
        one_standard_error=False,
    )
    return replace(
        whole,
        task=replace(whole.task, preset=preset),
        name=name,
        rows=whole.rows[inside],
        patients=patients,
        classes=np.tile(classes, (len(folds), 1)),
        folds=folds,
        tests_every_c=False,
    )


def _rounds(classes: Int64, patients: Int64, seed: int) -> Iterator[Int64]:
    """Yield the folds (n,) of each round; every patient is tested once."""
    outer = divide(classes, patients, _SHIFT_ROUNDS, seed, "probe-shift")
    for number in range(_SHIFT_ROUNDS):
        fold = np.full(len(classes), -1)
        develops = outer != number
        fold[develops] = divide(classes[develops], patients[develops], _SHIFT_FOLDS, seed, "probe-shift-folds")
        yield fold
