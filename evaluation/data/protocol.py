"""Who is scored on what, and how: a dataset's task, the presets, and parts and folds that never divide a patient."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from evaluation.data.samples import Samples
from evaluation.results.presets import Balance, Preset, Task, Uncertain, task_of
from infra.errors import UserError, require
from infra.rng import permutation, uniform

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


_TEST_PARTS: Final = 5  # one of five parts of the patients is tested on: 20 %


@dataclass(frozen=True)
class Cohort:
    """The n images of a dataset that its task is about, and the part of each in every round.

    rows: (n,) positions among the dataset's samples. classes: (n,) 1 positive, 0 negative. patients: (n,) one code a
    patient, or a group of patients that share an image. folds: (rounds, n) the fold of the development part, -1 in the
    test part. split: how the parts came about. excluded: reason -> images left out.
    """

    dataset: str
    task: Task
    rows: Ints
    classes: Ints
    patients: Ints
    folds: Ints
    split: str
    excluded: dict[str, int]

    @property
    def in_test(self) -> Bools:
        """(rounds, n) whether an image is in a round's test part, which is scored once and chooses nothing."""
        return self.folds < 0


def build_cohort(
    dataset: str,
    samples: Samples,
    preset: Preset,
    *,
    seed: int,
    uncertain: Uncertain = "ignore",
    balance: Balance = "none",
    groups: Ints | None = None,
    folds: int | None = None,
    repeats: int = 1,
) -> Cohort:
    """Choose the images of the dataset's task and divide them.

    The official split where the dataset has a test part (train and val form the development part; images of it whose
    patient is tested on are left out), else by the preset: a fifth of the patients, stratified, is the test part, or
    each fifth in turn, `repeats` times over. `folds` replaces the preset's. Folds are stratified and grouped by
    patient, or by `groups` (one code a sample of the dataset) where these are given.
    A positive label that is uncertain (-1) leaves its image out, or counts for the negative or the positive class
    (U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019). `balance` takes as many images of each class ("class"), or of
    each class in every view ("view"), chosen by the seed, in the test and in the development part.
    Raises UserError when a class is missing or has too few patients.
    """
    task = task_of(dataset)
    of_all = _classes(task, samples, uncertain)
    excluded = {reason: int(np.sum(of_all == code)) for code, reason in _REASONS.items()}
    rows = np.flatnonzero(np.isin(of_all, (0, 1)))
    patients = np.unique(np.asarray(samples.patients, np.str_), return_inverse=True)[1] if groups is None else groups
    in_test = _official_test(dataset, [samples.splits[row] for row in rows])

    def keep(inside: Bools, reason: str) -> None:
        nonlocal rows, in_test
        excluded[reason] = int((~inside).sum())
        rows, in_test = rows[inside], None if in_test is None else in_test[inside]

    if in_test is not None:
        keep(in_test | ~np.isin(patients[rows], patients[rows][in_test]), "development image of a tested patient")
    if balance != "none":
        keep(_balanced(of_all, samples, rows, in_test, balance, seed), f"left out to balance by {balance}")

    classes, codes = of_all[rows], np.unique(patients[rows], return_inverse=True)[1]
    check = _Check(dataset, task, classes, codes)
    inner = folds or preset.folds
    if in_test is not None:
        parts = [check.folded(in_test, inner, seed)]
        split = "official"
    else:
        check.patients("images", np.ones(len(rows), np.bool_), _TEST_PARTS)
        numbers = range(repeats if preset.crosses else 1)
        outer = [divide(classes, codes, _TEST_PARTS, seed, f"probe-test-{number}") for number in numbers]
        tested = [part == number for part in outer for number in range(_TEST_PARTS if preset.crosses else 1)]
        parts = [check.folded(inside, inner, seed) for inside in tested]
        split = f"{_TEST_PARTS}-fold by patient" if preset.crosses else "70/10/20 by patient"
        split += f", {repeats} times" if preset.crosses and repeats > 1 else ""
    return Cohort(dataset, task, rows, classes, codes, np.stack(parts), split, excluded)


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


def _official_test(dataset: str, splits: list[str | None]) -> Bools | None:
    """(n,) whether an image is of the official test part; None where the dataset has none."""
    if "test" not in splits:
        return None
    nameless = splits.count(None)
    require(
        nameless == 0,
        f"dataset {dataset!r}: {nameless} images have no official split while others have; pack the dataset again",
    )
    return np.array([split == "test" for split in splits])


def _balanced(of_all: Ints, samples: Samples, rows: Ints, in_test: Bools | None, balance: Balance, seed: int) -> Bools:
    """(n,) whether an image stays; which ones do is drawn by their identity, so that repacking changes nothing."""
    views = np.array([str(samples.views[row]) if balance == "view" else "" for row in rows])
    parts = np.zeros(len(rows), np.bool_) if in_test is None else in_test
    draws = uniform(seed, "probe-balance", samples.ids[rows], 0, 1)[:, 0]
    kept = np.zeros(len(rows), np.bool_)
    for view in np.unique(views):
        for part in (False, True):
            inside = [np.flatnonzero((views == view) & (parts == part) & (of_all[rows] == code)) for code in (0, 1)]
            for some in inside:
                kept[some[np.argsort(draws[some])][: min(map(len, inside))]] = True
    return kept


def divide(classes: Ints, patients: Ints, folds: int, seed: int, stream: str) -> Ints:
    """(n,) the fold of each image: no patient in two, classes in like shares, ties broken by the seed."""
    codes, patient = np.unique(patients, return_inverse=True)
    groups = permutation(len(codes), seed, stream)[patient]  # in place of sklearn's own shuffle
    fold = np.empty(len(classes), np.int64)
    parts = StratifiedGroupKFold(folds).split(np.zeros(len(classes)), classes, groups)
    for number, (_, inside) in enumerate(parts):
        fold[inside] = number
    return fold


@dataclass(frozen=True)
class _Check:
    """Divides, and refuses what cannot be divided, naming the dataset."""

    dataset: str
    task: Task
    classes: Ints
    codes: Ints

    def folded(self, in_test: Bools, folds: int, seed: int) -> Ints:
        """Return the folds (n,) of the development part, -1 in the test part."""
        self.patients("test part", in_test, 1)
        self.patients("development part", ~in_test, folds)
        fold = np.full(len(in_test), -1)
        fold[~in_test] = divide(self.classes[~in_test], self.codes[~in_test], folds, seed, "probe-folds")
        for number in range(folds):
            require(
                len(np.unique(self.classes[fold == number])) == 2,
                f"dataset {self.dataset!r}: fold {number} of folds={folds} has one class only, since few patients hold "
                "most images of the other; use fewer folds",
            )
        return fold

    def patients(self, part: str, inside: Bools, least: int) -> None:
        """Raise UserError when a part lacks a class, is of one patient, or has fewer than `least` of a class."""
        classes, codes = self.classes[inside], self.codes[inside]
        names = {self.task.positive: 1, self.task.negative_name: 0}
        counts = {name: len(np.unique(codes[classes == code])) for name, code in names.items()}
        found = " and ".join(f"{count} patients with {name}" for name, count in counts.items())
        where = "" if part == "images" else f" in its {part}"
        if min(counts.values()) == 0:
            raise UserError(f"dataset {self.dataset!r} has {found}{where}; a probe needs both classes there")
        if part != "test part" and len(np.unique(codes)) == 1:
            raise UserError(
                f"dataset {self.dataset!r}: all {len(codes)} images of the task{where} are of one patient; a probe "
                "needs other patients to be tested on"
            )
        if min(counts.values()) < least:
            raise UserError(
                f"dataset {self.dataset!r} has {found}{where}, fewer than the {least} parts they are divided into; "
                "use fewer folds or more patients"
            )
