"""Probe cases: features with the classes and parts on which they are probed, round by round; each becomes a row."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import sklearn

from evaluation.data.division import UNUSED, divide
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.search import SearchProblem
from evaluation.results.datasets import TaskKey
from evaluation.results.presets import Preset
from evaluation.results.rows import ProbeKind
from infra.arrays import Bool, Int64
from infra.rng import permutation

FEW_PERCENT: Final = (1, 5, 10, 25)
# Features whose classifiers serve new images. The controls of a task show what a score is worth, and predict nothing.
KEPT_KINDS: Final[tuple[ProbeKind, ...]] = ("checkpoint", "compared")
_FEW_DRAWS: Final = 5
_FEW_FOLDS: Final = 3
_VERSION: Final = 2  # of how classifiers are fitted; raise it when that changes, so that cached ones are fitted again


class Round(NamedTuple):
    """One round of a probe case.

    Attributes:
        name: name in messages and in the search, unique within a probe
        identity: hash of everything that the fitted probe depends on
        problem: the problem to solve
    """

    name: str
    identity: str
    problem: SearchProblem


@dataclass(frozen=True, eq=False)
class ProbeCase:
    """One feature set on one task; compared by identity.

    Attributes:
        task: the task
        name: name of the features, as in the tables
        kind: a checkpoint or one of the controls
        epoch: epoch of a checkpoint
        step: step of a checkpoint
        matrix: the features
        rows: (n,) rows of the matrix
        patients: (n,) codes
        classes: (rounds, n) 0 or 1
        folds: (rounds, n) from 0 in the development part, -1 in the test part, UNUSED elsewhere
        tests_every_c: also test every C, for the report
        seed: seed of the weights of an untrained backbone
        keeps_classifier: also return the classifiers, for use on new images
    """

    task: ProbeTask
    name: str
    kind: ProbeKind
    epoch: float | None
    step: int | None
    matrix: FeatureMatrix
    rows: Int64
    patients: Int64
    classes: Int64
    folds: Int64
    tests_every_c: bool
    seed: int | None = None
    keeps_classifier: bool = False

    @property
    def key(self) -> TaskKey:
        """Label of the dataset and name of the preset."""
        return self.task.key

    @property
    def preset(self) -> Preset:
        """The protocol of the task."""
        return self.task.preset

    def rounds(self) -> Iterator[Round]:
        """Yield the problem of each round."""
        case = f"{self.name} on {self.key.dataset} ({self.key.preset})"
        for number, (classes, fold) in enumerate(zip(self.classes, self.folds, strict=True), start=1):
            used = fold != UNUSED
            problem = SearchProblem(
                features=self.matrix.identity,
                rows=self.rows[used],
                classes=classes[used],
                fold=fold[used],
                standardize=self.preset.standardize,
                c_grid=self.preset.c_grid,
                max_iterations=self.preset.max_iterations,
                one_standard_error=self.preset.one_standard_error,
                tests_every_c=self.tests_every_c,
                keeps_classifier=self.keeps_classifier,
            )
            yield Round(f"{case}, round {number} of {len(self.folds)}", _identity(problem), problem)


def _identity(problem: SearchProblem) -> str:
    options = (
        problem.standardize,
        tuple(problem.c_grid),
        problem.max_iterations,
        problem.one_standard_error,
        problem.tests_every_c,
        *(["classifier"] if problem.keeps_classifier else []),
    )
    digest = hashlib.sha256(f"{_VERSION} {sklearn.__version__} {problem.features} {options}".encode())
    for values in (problem.rows, problem.classes, problem.fold):
        digest.update(np.ascontiguousarray(values, np.int64).tobytes())
    return digest.hexdigest()


def probe_case(task: ProbeTask, source: FeatureSource, matrix: FeatureMatrix) -> ProbeCase:
    """Return the case of a source's features on the classes and parts of a task."""
    cohort = task.cohort
    return ProbeCase(
        task=task,
        name=source.name,
        kind=source.kind,
        epoch=source.epoch,
        step=source.step,
        matrix=matrix,
        rows=cohort.rows,
        patients=cohort.patients,
        classes=np.tile(cohort.classes, (len(cohort.folds), 1)),
        folds=cohort.folds,
        tests_every_c=task.preset.tests_every_c,
        seed=source.seed,
        keeps_classifier=source.kind in KEPT_KINDS,
    )


def derived_case(case: ProbeCase, name: str, kind: ProbeKind, matrix: FeatureMatrix | None = None) -> ProbeCase:
    """Return a control on the same classes and parts, with other features if given."""
    return replace(
        case,
        name=name,
        kind=kind,
        epoch=None,
        step=None,
        seed=None,
        matrix=matrix or case.matrix,
        keeps_classifier=False,
    )


def few_labels_case(case: ProbeCase, percent: int, seed: int) -> ProbeCase | None:
    """Return the case fitted to the labels of only some development patients, one draw of patients per round.

    A draw takes `percent` of the patients of each class, at least three; a larger draw contains the smaller ones. C is
    chosen among them alone. A task with one test part has five draws, otherwise each part has one.

    Returns:
        The case, None if so few patients cannot form three folds with both classes.
    """
    draws = range(_FEW_DRAWS if len(case.folds) == 1 else 1)
    rounds = [(classes, fold, draw) for classes, fold in zip(case.classes, case.folds, strict=True) for draw in draws]
    folds = [
        _few_folds(classes, fold, case.patients, percent, seed, f"probe-few-{number}-{draw}")
        for number, (classes, fold, draw) in enumerate(rounds)
    ]
    if any(fold is None for fold in folds):
        return None
    return replace(
        case,
        name=f"{case.name}, {percent} % of the labels",
        tests_every_c=False,
        keeps_classifier=False,
        classes=np.stack([classes for classes, _, _ in rounds]),
        folds=np.stack([fold for fold in folds if fold is not None]),
    )


def _few_folds(classes: Int64, fold: Int64, patients: Int64, percent: int, seed: int, stream: str) -> Int64 | None:
    """Return (n,) new folds: -1 in the test part, from 0 among the patients drawn, UNUSED elsewhere."""
    develops = fold >= 0
    drawn: Bool = np.zeros(len(fold), np.bool_)
    positive = np.unique(patients[develops & (classes == 1)])
    for of_class in (positive, np.setdiff1d(patients[develops], positive)):
        count = max(_FEW_FOLDS, round(percent / 100 * len(of_class)))
        if count > len(of_class):
            return None
        drawn |= develops & np.isin(patients, of_class[permutation(len(of_class), seed, stream)[:count]])
    few = np.where(fold < 0, fold, UNUSED)
    few[drawn] = divide(classes[drawn], patients[drawn], _FEW_FOLDS, seed, stream)
    complete = all(len(np.unique(classes[few == number])) == 2 for number in range(_FEW_FOLDS))
    return few if complete else None
