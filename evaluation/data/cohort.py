"""The images of a task, and their parts and folds, which never divide a patient."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from evaluation.data.samples import Samples
from evaluation.results.presets import Balance, Preset, Split, Task, Uncertain
from infra.arrays import Bool, Int64
from infra.errors import UserError, require
from infra.rng import permutation, uniform
from sharding.format.copies import COPY

UNUSED: Final = -2  # fold of an image that takes no part in a round
_TEST_PARTS: Final = 5  # the test part is one fifth of the patients
_OFFICIAL: Final = "official"


@dataclass(frozen=True)
class Cohort:
    """The n images of a dataset that belong to its task, and the part of each image in every round.

    Attributes:
        dataset: name of the dataset
        task: its classification task
        rows: (n,) positions among the dataset's samples
        classes: (n,) 1 positive, 0 negative
        patients: (n,) one code for each patient, or for each group of patients that share an image
        folds: (rounds, n) fold of a development image, -1 in the test part, UNUSED in neither
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
        return self.folds == -1

    @property
    def in_development(self) -> Bool:
        """(rounds, n) whether an image is in the development part."""
        return self.folds >= 0

    @property
    def is_official(self) -> bool:
        """Whether upstream chose the test part."""
        return self.split == _OFFICIAL


def build_cohort(
    dataset: str,
    task: Task,
    samples: Samples,
    preset: Preset,
    *,
    seed: int,
    split: Split = "official",
    uncertain: Uncertain = "ignore",
    groups: Int64 | None = None,
    left_out: Bool | None = None,
    folds: int | None = None,
    repeats: int = 1,
) -> Cohort:
    """Choose the images of a task and divide them.

    A dataset with an official test part keeps it: train and val form the development part, without images of tested
    patients. Otherwise the preset decides: the test part is a stratified fifth of the patients, or each fifth in turn,
    `repeats` times over. Folds are stratified and never divide a patient or a group.

    Args:
        dataset: name of the dataset
        task: the classification, and how its classes are balanced
        samples: the dataset's N samples
        preset: the protocol
        seed: determines parts, folds and the balance
        split: whether an official test part is kept, or ignored as if there were none
        uncertain: meaning of an uncertain (-1) positive label: "ignore" leaves the image out, "zeros" makes it
            negative, "ones" positive (U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019)
        groups: (N,) codes that replace the patients
        left_out: (N,) whether an image is left out as a copy of another
        folds: replaces the preset's number of folds
        repeats: repetitions of the preset's cross-validation

    Raises:
        UserError: if a class is missing or has too few patients.
    """
    all_classes = _classes(task, samples, uncertain)
    excluded = {reason: int(np.sum(all_classes == code)) for code, reason in _REASONS.items()}
    rows = np.flatnonzero(np.isin(all_classes, (0, 1)))
    patients = np.unique(np.asarray(samples.patients, np.str_), return_inverse=True)[1] if groups is None else groups
    in_test = _official_test(dataset, [samples.splits[row] for row in rows]) if split == "official" else None

    def keep(inside: Bool, reason: str) -> None:
        nonlocal rows, in_test
        excluded[reason] = int((~inside).sum())
        rows, in_test = rows[inside], None if in_test is None else in_test[inside]

    if left_out is not None:
        keep(~left_out[rows], COPY)
    if in_test is not None:
        keep(in_test | ~np.isin(patients[rows], patients[rows][in_test]), "development image of a tested patient")
    draw = _Draw(all_classes, samples, seed)
    if task.balance in ("class", "view"):
        parts = np.zeros(len(rows), np.bool_) if in_test is None else in_test
        keep(draw.balanced(rows, parts, task.balance), f"left out to balance by {task.balance}")

    classes, codes = all_classes[rows], np.unique(patients[rows], return_inverse=True)[1]
    check = _Check(dataset, task, classes, codes, excluded.get(COPY, 0))
    if in_test is not None:
        tested, name = [in_test], _OFFICIAL
    else:
        tested, name = _test_parts(check, preset, repeats, seed)
    rounds = []
    for inside in tested:
        develops = ~inside
        if task.balance == "development":
            develops &= draw.balanced(rows, inside, task.balance)
        rounds.append(check.fold(inside, develops, folds or preset.folds, seed))
    assigned = np.stack(rounds)
    if task.balance == "development":
        excluded["development image left out to balance the classes"] = int((assigned == UNUSED).all(axis=0).sum())
    return Cohort(dataset, task, rows, classes, codes, assigned, name, excluded)


def _test_parts(check: "_Check", preset: Preset, repeats: int, seed: int) -> tuple[list[Bool], str]:
    """Return which images (n,) each round tests, without an official split, and the name of such parts."""
    check.require_patients("images", np.ones(len(check.codes), np.bool_), _TEST_PARTS)
    repetitions = range(repeats if preset.crosses else 1)
    outer = [divide(check.classes, check.codes, _TEST_PARTS, seed, f"probe-test-{number}") for number in repetitions]
    tested = [part == number for part in outer for number in range(_TEST_PARTS if preset.crosses else 1)]
    if not preset.crosses:
        return tested, "80/20 by patient"
    return tested, f"{_TEST_PARTS}-fold by patient" + (f", {repeats} times" if repeats > 1 else "")


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


@dataclass(frozen=True)
class _Draw:
    """Draws which images stay if classes are balanced. It depends on the ids, so that repacking changes nothing."""

    classes: Int64
    samples: Samples
    seed: int

    def balanced(self, rows: Int64, parts: Bool, balance: Balance) -> Bool:
        """Return (n,) whether an image of these rows stays, if equally many of each class may in each part (n,)."""
        classes = self.classes[rows]
        views = np.array([str(self.samples.views[row]) if balance == "view" else "" for row in rows])
        draws = uniform(self.seed, "probe-balance", self.samples.ids[rows], 0, 1)[:, 0]
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

    def fold(self, in_test: Bool, develops: Bool, folds: int, seed: int) -> Int64:
        """Return (n,) the fold of a development image, -1 in the test part, UNUSED in neither."""
        self.require_patients("test part", in_test, 1)
        self.require_patients("development part", develops, folds)
        fold_of = np.where(in_test, -1, UNUSED)
        fold_of[develops] = divide(self.classes[develops], self.codes[develops], folds, seed, "probe-folds")
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
