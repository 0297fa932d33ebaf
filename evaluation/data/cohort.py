"""The images of a task, and their parts and folds, which never divide a patient."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from evaluation.data.samples import Samples
from evaluation.results.presets import Balance, Preset, Task, Uncertain, task_of
from infra.arrays import Bool, Int64
from infra.errors import UserError, require
from infra.rng import permutation, uniform
from sharding.format.copies import COPY

_TEST_PARTS: Final = 5  # the test part is one fifth of the patients


@dataclass(frozen=True)
class Cohort:
    """The n images of a dataset that belong to its task, and the part of each image in every round.

    Attributes:
        dataset: name of the dataset
        task: its classification task
        rows: (n,) positions among the dataset's samples
        classes: (n,) 1 positive, 0 negative
        patients: (n,) one code for each patient, or for each group of patients that share an image
        folds: (rounds, n) fold of a development image, -1 in the test part
        split: origin of the parts
        excluded: reason -> images left out
    """

    dataset: str
    task: Task
    rows: Int64
    classes: Int64
    patients: Int64
    folds: Int64
    split: str
    excluded: dict[str, int]

    @property
    def in_test(self) -> Bool:
        """(rounds, n) whether an image is in the test part, which is scored once and never used for a choice."""
        return self.folds < 0


def build_cohort(
    dataset: str,
    samples: Samples,
    preset: Preset,
    *,
    seed: int,
    uncertain: Uncertain = "ignore",
    balance: Balance = "none",
    groups: Int64 | None = None,
    left_out: Bool | None = None,
    folds: int | None = None,
    repeats: int = 1,
) -> Cohort:
    """Choose the images of the dataset's task and divide them.

    A dataset with an official test part keeps it: train and val form the development part, without images of tested
    patients. Otherwise the preset decides: the test part is a stratified fifth of the patients, or each fifth in turn,
    `repeats` times over. Folds are stratified and never divide a patient or a group.

    Args:
        dataset: name of the dataset
        samples: its N samples
        preset: the protocol
        seed: determines parts, folds and the balance
        uncertain: meaning of an uncertain (-1) positive label: "ignore" leaves the image out, "zeros" makes it
            negative, "ones" positive (U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019)
        balance: "class" keeps equally many images of each class in the test part and in the development part; "view"
            does so within each view
        groups: (N,) codes that replace the patients
        left_out: (N,) whether an image is left out as a copy of another
        folds: replaces the preset's number of folds
        repeats: repetitions of the preset's cross-validation

    Raises:
        UserError: if a class is missing or has too few patients.
    """
    task = task_of(dataset)
    all_classes = _classes(task, samples, uncertain)
    excluded = {reason: int(np.sum(all_classes == code)) for code, reason in _REASONS.items()}
    rows = np.flatnonzero(np.isin(all_classes, (0, 1)))
    patients = np.unique(np.asarray(samples.patients, np.str_), return_inverse=True)[1] if groups is None else groups
    in_test = _official_test(dataset, [samples.splits[row] for row in rows])

    def keep(inside: Bool, reason: str) -> None:
        nonlocal rows, in_test
        excluded[reason] = int((~inside).sum())
        rows, in_test = rows[inside], None if in_test is None else in_test[inside]

    if left_out is not None:
        keep(~left_out[rows], COPY)
    if in_test is not None:
        keep(in_test | ~np.isin(patients[rows], patients[rows][in_test]), "development image of a tested patient")
    if balance != "none":
        keep(_balanced(all_classes, samples, rows, in_test, balance, seed), f"left out to balance by {balance}")

    classes, codes = all_classes[rows], np.unique(patients[rows], return_inverse=True)[1]
    check = _Check(dataset, task, classes, codes, excluded.get(COPY, 0))
    inner = folds or preset.folds
    if in_test is not None:
        parts = [check.fold(in_test, inner, seed)]
        split = "official"
    else:
        check.require_patients("images", np.ones(len(rows), np.bool_), _TEST_PARTS)
        repetitions = range(repeats if preset.crosses else 1)
        outer = [divide(classes, codes, _TEST_PARTS, seed, f"probe-test-{number}") for number in repetitions]
        tested = [part == number for part in outer for number in range(_TEST_PARTS if preset.crosses else 1)]
        parts = [check.fold(inside, inner, seed) for inside in tested]
        split = f"{_TEST_PARTS}-fold by patient" if preset.crosses else "70/10/20 by patient"
        split += f", {repeats} times" if preset.crosses and repeats > 1 else ""
    return Cohort(dataset, task, rows, classes, codes, np.stack(parts), split, excluded)


_OPPOSITE: Final = {1: 0, 0: 1, -1: -1, None: None}
_REASONS: Final = {-1: "label uncertain", -2: "neither label", -3: "both labels"}


def _classes(task: Task, samples: Samples, uncertain: Uncertain) -> Int64:
    """Return (N,) 1 positive, 0 negative, or one of the negative codes of `_REASONS`."""
    classes = np.empty(len(samples.labels), np.int64)
    for row, labels in enumerate(samples.labels):
        positive = labels.get(task.positive)
        negative = labels.get(task.negative) if task.negative else _OPPOSITE[positive]
        if positive == -1 and uncertain != "ignore":
            positive, negative = (1, negative) if uncertain == "ones" else (0, 1)
        if positive == 1 or negative == 1:
            # A certain label next to an uncertain one makes no certain case of either class.
            classes[row] = -3 if positive == negative else -1 if -1 in (positive, negative) else int(positive == 1)
        else:
            classes[row] = -1 if -1 in (positive, negative) else -2
    return classes


def _official_test(dataset: str, splits: list[str | None]) -> Bool | None:
    """Return (n,) whether an image is in the official test part; None if the dataset has none."""
    if "test" not in splits:
        return None
    missing = splits.count(None)
    require(
        missing == 0,
        f"dataset {dataset!r}: {missing} images have no official split, others have one; pack the dataset again",
    )
    return np.array([split == "test" for split in splits])


def _balanced(
    all_classes: Int64, samples: Samples, rows: Int64, in_test: Bool | None, balance: Balance, seed: int
) -> Bool:
    """Return (n,) whether an image stays. The draw depends on the ids, so that repacking changes nothing."""
    classes = all_classes[rows]
    views = np.array([str(samples.views[row]) if balance == "view" else "" for row in rows])
    parts = np.zeros(len(rows), np.bool_) if in_test is None else in_test
    draws = uniform(seed, "probe-balance", samples.ids[rows], 0, 1)[:, 0]
    kept = np.zeros(len(rows), np.bool_)
    for view in np.unique(views):
        for part in (False, True):
            inside = [np.flatnonzero((views == view) & (parts == part) & (classes == code)) for code in (0, 1)]
            for of_class in inside:
                kept[of_class[np.argsort(draws[of_class])][: min(map(len, inside))]] = True
    return kept


def divide(classes: Int64, patients: Int64, folds: int, seed: int, stream: str) -> Int64:
    """Divide images into stratified folds that never divide a patient.

    Args:
        classes: (n,) 0 or 1
        patients: (n,) codes
        folds: how many folds
        seed: breaks ties
        stream: name of the random stream

    Returns:
        (n,) the fold of each image.
    """
    codes, patient = np.unique(patients, return_inverse=True)
    groups = permutation(len(codes), seed, stream)[patient]  # instead of scikit-learn's own shuffle
    fold = np.empty(len(classes), np.int64)
    parts = StratifiedGroupKFold(folds).split(np.zeros(len(classes)), classes, groups)
    for number, (_, inside) in enumerate(parts):
        fold[inside] = number
    return fold


@dataclass(frozen=True)
class _Check:
    """Divides a dataset; its errors name the dataset and how many images were left out as copies."""

    dataset: str
    task: Task
    classes: Int64
    codes: Int64
    copies: int

    def fold(self, in_test: Bool, folds: int, seed: int) -> Int64:
        """Return (n,) the fold of a development image, -1 in the test part."""
        self.require_patients("test part", in_test, 1)
        self.require_patients("development part", ~in_test, folds)
        fold_of = np.full(len(in_test), -1)
        fold_of[~in_test] = divide(self.classes[~in_test], self.codes[~in_test], folds, seed, "probe-folds")
        for number in range(folds):
            require(
                len(np.unique(self.classes[fold_of == number])) == 2,
                f"dataset {self.dataset!r}: fold {number} of folds={folds} has only one class, because few patients "
                "have most images of the other; use fewer folds",
            )
        return fold_of

    def require_patients(self, part: str, inside: Bool, least: int) -> None:
        """Raise UserError if a part lacks a class, has one patient only, or fewer than `least` patients of a class."""
        classes, codes = self.classes[inside], self.codes[inside]
        names = {self.task.positive: 1, self.task.negative_name: 0}
        counts = {name: len(np.unique(codes[classes == code])) for name, code in names.items()}
        summary = " and ".join(f"{count} patients with {name}" for name, count in counts.items())
        where = "" if part == "images" else f" in its {part}"
        if min(counts.values()) == 0:
            left_out = f" after {self.copies} x {COPY}" if self.copies else ""
            raise UserError(f"dataset {self.dataset!r} has {summary}{where}{left_out}; a probe needs both classes")
        if part != "test part" and len(np.unique(codes)) == 1:
            raise UserError(
                f"dataset {self.dataset!r}: all {len(codes)} images of the task{where} show one patient; a probe "
                "needs more, because it is tested on other patients than it is fitted to"
            )
        if min(counts.values()) < least:
            parts, hint = ("test parts", "") if part == "images" else ("folds", "use fewer folds, or ")
            raise UserError(
                f"dataset {self.dataset!r} has {summary}{where}, fewer than the {least} {parts} to divide them into; "
                f"{hint}add patients of that class"
            )
