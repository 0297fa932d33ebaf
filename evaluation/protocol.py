"""Who is scored on what: a dataset's task, its split, and folds that never divide a patient."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from evaluation.features import Samples
from infra.errors import UserError, require
from infra.rng import permutation

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

C_GRID: Final = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)  # Gazda et al. 2021, section V B
_TEST_FOLDS: Final = 5  # one of five folds of the patients is the test part: 20 %


@dataclass(frozen=True)
class Task:
    """Images with the label `positive` present against images with `negative` present, or with `positive` absent."""

    positive: str
    negative: str | None = None

    @property
    def negative_name(self) -> str:
        """What the negative class is called."""
        return self.negative or f"no {self.positive}"


Uncertain = Literal["ignore", "zeros", "ones"]

# Pneumonia against healthy, COVID-19 against none or against other pneumonia, never across datasets (Gazda et al. 2021,
# section V).
TASKS: Final = {
    "cell": Task("PNEUMONIA", "NORMAL"),
    "chestxray14": Task("Pneumonia", "No Finding"),
    "chexpert": Task("Pneumonia", "No Finding"),
    "c19-cohen": Task("COVID-19", "other pneumonia"),
    "covidgr": Task("COVID-19"),
}


@dataclass(frozen=True)
class Cohort:
    """The n images of a dataset that its task is about, and the part of each.

    rows: (n,) positions among the dataset's samples. classes: (n,) 1 positive, 0 negative. patients: (n,) one code a
    patient. fold: (n,) fold of the development part, -1 in the test part. split: how the parts came about.
    excluded: reason -> images left out. shared_patients: patients on both sides of an official split.
    """

    dataset: str
    task: Task
    rows: Ints
    classes: Ints
    patients: Ints
    fold: Ints
    split: str
    excluded: dict[str, int]
    shared_patients: int

    @property
    def in_test(self) -> Bools:
        """(n,) whether an image is in the test part, which is scored once and chooses nothing."""
        return self.fold < 0


def task_of(dataset: str) -> Task:
    """Return the task of a dataset; raises UserError where there is none."""
    if dataset not in TASKS:
        raise UserError(f"dataset {dataset!r} has no task to probe; those with one are {', '.join(sorted(TASKS))}")
    return TASKS[dataset]


def build_cohort(
    dataset: str,
    samples: Samples,
    folds: int,
    seed: int,
    uncertain: Uncertain = "ignore",
    balanced: bool = False,
) -> Cohort:
    """Choose the task's images, the test part and the folds.

    The official split is taken where the dataset has a test part (train and val form the development part), else a
    fifth of the patients, stratified, is the test part; the paper's 70 / 10 / 20, with cross-validation in place of its
    one validation part. Folds are stratified and grouped by patient.
    A positive label that is uncertain (-1) leaves its image out, or counts for the negative or the positive class
    (U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019). `balanced` takes as many patients of each class, chosen by the
    seed, and none for both: the paper's task on ChestX-ray14 (its section IV: "a matched number of healthy controls").
    Raises UserError when a class is missing or has too few patients.
    """
    task = task_of(dataset)
    classes_of_all = _classes(task, samples, uncertain)
    rows = np.flatnonzero(np.isin(classes_of_all, (0, 1)))
    excluded = {reason: int(np.sum(classes_of_all == code)) for code, reason in _REASONS.items()}
    if balanced:
        kept = _balanced(classes_of_all[rows], np.asarray(samples.patients, np.str_)[rows], seed)
        excluded["left out to balance the patients"] = int((~kept).sum())
        rows = rows[kept]
    classes = classes_of_all[rows]
    names, patients = np.unique(np.asarray(samples.patients, np.str_)[rows], return_inverse=True)
    _require_patients(dataset, task, "images", classes, patients, 1)
    require(
        len(names) > 1,
        f"dataset {dataset!r}: all {len(rows)} images of the task are of patient {str(names[0])!r}; "
        "a probe needs other patients to be tested on",
    )

    splits = [samples.splits[row] for row in rows]
    if "test" in splits:
        nameless = splits.count(None)
        require(
            nameless == 0,
            f"dataset {dataset!r}: {nameless} images have no official split while others have; pack the dataset again",
        )
        in_test = np.array([split == "test" for split in splits])
        split = "official"
    else:
        _require_patients(dataset, task, "images", classes, patients, _TEST_FOLDS)
        in_test = _folds(classes, patients, _TEST_FOLDS, seed, "probe-test") == 0
        split = "80/20 by patient"
    fold = np.full(len(rows), -1)
    for part, inside, least in (("test part", in_test, 1), ("development part", ~in_test, folds)):
        _require_patients(dataset, task, part, classes[inside], patients[inside], least)
    fold[~in_test] = _folds(classes[~in_test], patients[~in_test], folds, seed, "probe-folds")
    for number in range(folds):
        require(
            len(np.unique(classes[fold == number])) == 2,
            f"dataset {dataset!r}: fold {number} of folds={folds} has one class only, since few patients hold most "
            "images of the other; use fewer folds",
        )
    shared = np.intersect1d(patients[in_test], patients[~in_test])
    return Cohort(dataset, task, rows, classes, patients, fold, split, excluded, len(shared))


_OPPOSITE: Final = {1: 0, 0: 1, -1: -1, None: None}
_REASONS: Final = {-1: "label uncertain", -2: "neither label", -3: "both labels"}


def _classes(task: Task, samples: Samples, uncertain: Uncertain) -> Ints:
    """(N,) 1 positive, 0 negative, or one of the negative codes of `_REASONS`."""
    classes = np.empty(len(samples.labels), np.int64)
    for row, labels in enumerate(samples.labels):
        positive = labels.get(task.positive)
        negative = labels.get(task.negative) if task.negative else _OPPOSITE[positive]
        if positive == -1 and uncertain != "ignore":
            positive, negative = (1, negative) if uncertain == "ones" else (0, 1)
        if positive == 1 or negative == 1:
            # A sure label beside an uncertain one is no sure case of either class.
            classes[row] = -3 if positive == negative else -1 if -1 in (positive, negative) else int(positive == 1)
        else:
            classes[row] = -1 if -1 in (positive, negative) else -2
    return classes


def _balanced(classes: Ints, patients: npt.NDArray[np.str_], seed: int) -> Bools:
    """(n,) whether an image stays, so that equally many patients of each class do; one of both is of the positive."""
    positive = np.unique(patients[classes == 1])
    negative = np.setdiff1d(patients[classes == 0], positive)
    count = min(len(positive), len(negative))
    kept = np.zeros(len(classes), np.bool_)
    for code, of_class in ((1, positive), (0, negative)):
        chosen = of_class[permutation(len(of_class), seed, f"probe-balance-{code}")[:count]]
        kept |= (classes == code) & np.isin(patients, chosen)
    return kept


def _folds(classes: Ints, patients: Ints, folds: int, seed: int, stream: str) -> Ints:
    """(n,) the fold of each image: no patient in two, classes in like shares, ties broken by the seed."""
    codes, patient = np.unique(patients, return_inverse=True)
    groups = permutation(len(codes), seed, stream)[patient]  # in place of sklearn's own shuffle
    fold = np.empty(len(classes), np.int64)
    parts = StratifiedGroupKFold(folds).split(np.zeros(len(classes)), classes, groups)
    for number, (_, inside) in enumerate(parts):
        fold[inside] = number
    return fold


def _require_patients(dataset: str, task: Task, part: str, classes: Ints, patients: Ints, least: int) -> None:
    names = {task.positive: 1, task.negative_name: 0}
    counts = {name: len(np.unique(patients[classes == code])) for name, code in names.items()}
    where = "" if part == "images" else f" in its {part}"
    found = " and ".join(f"{count} patients with {name}" for name, count in counts.items())
    if min(counts.values()) == 0:
        raise UserError(f"dataset {dataset!r} has {found}{where}; a probe needs both classes there")
    if min(counts.values()) < least:
        raise UserError(
            f"dataset {dataset!r} has {found}{where}, fewer than the {least} parts they are divided into; "
            "use fewer folds or more patients"
        )
