"""The search for C, cut into tasks that run one after the other here, or in parallel by `ray_search`.

Phase one holds out one fold of one problem a task, and fits every C of the grid there; phase two fits each problem's
best C to its whole development part. Both ways call the same functions, so they find the same bits.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from infra.log import progress

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class SearchProblem:
    """One probe: which rows of which features it is fitted to, validated on and tested on.

    features: the name of a feature matrix (N, D). rows: (n,) its rows. classes: (n,) 0/1. fold: (n,) the fold from 0 of
    a development image, -1 in the test part. standardize: scale every feature to mean 0 and variance 1 over what the
    classifier is fitted to. c_grid, max_iterations: of the logistic regressions.
    """

    features: str
    rows: Ints
    classes: Ints
    fold: Ints
    standardize: bool
    c_grid: Sequence[float]
    max_iterations: int

    @property
    def folds(self) -> int:
        """How many folds the development part has."""
        return int(self.fold.max()) + 1

    @property
    def cost(self) -> int:
        """What a task takes, beside that of other problems."""
        return int(np.sum(self.fold >= 0)) * len(self.c_grid)


@dataclass(frozen=True)
class FoldResult:
    """What the fold held out says of the classifiers fitted to the other folds, one a C.

    aucs: (C,). probabilities: (C, held out) of the positive class. converged: (C,).
    """

    aucs: Floats
    probabilities: Floats
    converged: Bools


@dataclass(frozen=True)
class FinalResult:
    """What a classifier fitted to the whole development part says of the test part: probabilities (test,)."""

    probabilities: Floats
    converged: bool


@dataclass(frozen=True)
class FittedProbe:
    """The classifier of the chosen C, fitted to all of the development part.

    validation_auc: the mean over the folds at that C. validation: (development,) out-of-fold probabilities at that C,
    in the order of the development rows. probabilities: (test,). converged: of the last fit. fits, unconverged: count
    those of the search and the last one. aucs: C -> mean validation AUC. at_edge: the C is the smallest or largest of a
    grid of more than one, so that a better one may lie outside.
    """

    c: float
    validation_auc: float
    validation: Floats
    probabilities: Floats
    converged: bool
    fits: int
    unconverged: int
    aucs: dict[float, float]
    at_edge: bool


@dataclass(frozen=True)
class FoldFit:
    """Fit every C of a problem to all folds but one, and validate on that one."""

    problem: str
    fold: int

    def __call__(self, values: Floats32, problem: SearchProblem) -> FoldResult:
        """Do so, given the problem and its feature matrix (N, D)."""
        classes = problem.classes[problem.fold == self.fold]
        assert len(np.unique(classes)) == 2, f"{self} has one class only: protocols rule that out"
        probabilities, converged = _fit_and_predict(values, problem, self.fold, problem.c_grid)
        aucs = np.array([roc_auc_score(classes, of_c) for of_c in probabilities])
        return FoldResult(aucs, probabilities, converged)

    def __str__(self) -> str:
        return f"{self.problem}, fold {self.fold}"


@dataclass(frozen=True)
class FinalFit:
    """Fit one C of a problem to its whole development part, and predict the test part."""

    problem: str
    c: float

    def __call__(self, values: Floats32, problem: SearchProblem) -> FinalResult:
        """Do so, given the problem and its feature matrix (N, D)."""
        probabilities, converged = _fit_and_predict(values, problem, -1, [self.c])
        return FinalResult(probabilities[0], bool(converged[0]))

    def __str__(self) -> str:
        return f"{self.problem}, all folds"


def fold_fits(problems: Mapping[str, SearchProblem]) -> list[FoldFit]:
    """Return the tasks of phase one, the longest first, so that all cores finish at about the same time."""
    order = sorted(problems, key=lambda name: -problems[name].cost)
    return [FoldFit(name, fold) for name in order for fold in range(problems[name].folds)]


def mean_aucs(problem: SearchProblem, aucs: Sequence[Floats]) -> dict[float, float]:
    """Return C -> mean over the folds, given the AUCs (C,) of each fold in order."""
    return dict(zip(map(float, problem.c_grid), np.mean(aucs, axis=0).tolist(), strict=True))


def best_c(aucs: Mapping[float, float]) -> float:
    """Return the C of the best mean validation AUC, the smallest of equal ones."""
    return max(sorted(aucs), key=aucs.__getitem__)


def search_serially(features: Mapping[str, Floats32], problems: Mapping[str, SearchProblem]) -> dict[str, FittedProbe]:
    """Solve every problem in this process, one task after the other."""
    validations = {}
    for task in progress(fold_fits(problems), "choosing C", unit="fold"):
        problem = problems[task.problem]
        validations[task] = task(features[problem.features], problem)
    found = {}
    for name in progress(list(problems), "fitting probes", unit="probe"):
        problem = problems[name]
        of_folds = [validations[FoldFit(name, fold)] for fold in range(problem.folds)]
        c = best_c(mean_aucs(problem, [validation.aucs for validation in of_folds]))
        found[name] = fitted_probe(problem, of_folds, FinalFit(name, c)(features[problem.features], problem))
    return found


def fitted_probe(problem: SearchProblem, validations: Sequence[FoldResult], refit: FinalResult) -> FittedProbe:
    """Put together what came of a problem's tasks: of each fold in order, and of the last fit."""
    aucs = mean_aucs(problem, [validation.aucs for validation in validations])
    c = best_c(aucs)
    row = list(aucs).index(c)
    development = problem.fold[problem.fold >= 0]
    out_of_fold = np.empty(len(development))
    for fold, validation in enumerate(validations):
        out_of_fold[development == fold] = validation.probabilities[row]
    converged = np.array([validation.converged for validation in validations])
    return FittedProbe(
        c=c,
        validation_auc=aucs[c],
        validation=out_of_fold,
        probabilities=refit.probabilities,
        converged=refit.converged,
        fits=converged.size + 1,
        unconverged=int((~converged).sum()) + (not refit.converged),
        aucs=aucs,
        at_edge=len(aucs) > 1 and c in (min(aucs), max(aucs)),
    )


def fit(values: Floats32 | Floats, classes: Ints, c: float, max_iterations: int) -> tuple[LogisticRegression, bool]:
    """Fit the paper's probe and say whether it converged.

    scikit-learn's LogisticRegression (lbfgs, L2) in float64 with balanced class weights (Gazda et al. 2021, section
    V B). On one thread, so that sums are taken in the same order whatever the number of cores.
    """
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=max_iterations)
    with _thread_pools().limit(limits=1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(values.astype(np.float64, copy=False), classes)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model, converged


@cache
def _thread_pools() -> ThreadpoolController:
    """Return what bounds threads, kept since it takes milliseconds to find all libraries, as long as a small fit."""
    return ThreadpoolController()


def _fit_and_predict(
    values: Floats32, problem: SearchProblem, held_out: int, grid: Sequence[float]
) -> tuple[Floats, Bools]:
    """Fit each C to all folds but one, -1 being the test part; returns probabilities (C, held out), converged (C,)."""
    fitted = (problem.fold >= 0) & (problem.fold != held_out)
    inside = values[problem.rows[fitted]].astype(np.float64)  # once for all C
    outside = values[problem.rows[problem.fold == held_out]].astype(np.float64)
    probabilities, converged = np.empty((len(grid), len(outside))), np.empty(len(grid), np.bool_)
    with _thread_pools().limit(limits=1):
        if problem.standardize:
            scaler = StandardScaler(copy=False).fit(inside)
            inside, outside = scaler.transform(inside), scaler.transform(outside)
        for row, c in enumerate(grid):
            model, converged[row] = fit(inside, problem.classes[fitted], c, problem.max_iterations)
            probabilities[row] = model.predict_proba(outside)[:, 1]
    return probabilities, converged
