"""The search for C, divided into fits that run one after the other here, or in parallel in `ray_search`.

A fold fit holds out one fold of one problem and fits every C of the grid. A final fit takes a problem's chosen C and
the whole development part. Both searches call the same functions, so their results agree to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.fitting.logistic_regression import GridFit, fit_grid
from evaluation.results.classifier import Classifier
from infra.arrays import Bool, Float32, Float64, Int64
from infra.log import progress


@dataclass(frozen=True)
class SearchProblem:
    """The data of one probe: for fitting, validation and test.

    Attributes:
        features: name of a feature matrix (N, D)
        rows: (n,) rows of that matrix
        classes: (n,) 0 or 1
        fold: (n,) fold, from 0, of a development image; -1 in the test part
        standardize: scale each feature to mean 0 and variance 1 over the images that a classifier is fitted to
        c_grid: values of C to try
        max_iterations: most iterations of one logistic regression
        one_standard_error: choose the smallest C whose validation AUC is within one standard error of the best
        tests_every_c: also test every C, fitted to the whole development part; for reports, never for a choice
        keeps_classifier: also return the classifier with the chosen C, for use on new images
    """

    features: str
    rows: Int64
    classes: Int64
    fold: Int64
    standardize: bool
    c_grid: Sequence[float]
    max_iterations: int
    one_standard_error: bool = False
    tests_every_c: bool = False
    keeps_classifier: bool = False

    @property
    def folds(self) -> int:
        """Number of folds in the development part."""
        return int(self.fold.max()) + 1

    @property
    def cost(self) -> int:
        """Cost of a fold fit, relative to that of other problems."""
        return int(np.sum(self.fold >= 0)) * len(self.c_grid)


@dataclass(frozen=True)
class FoldResult:
    """Validation of the classifiers fitted to all folds but one, one for each C.

    Attributes:
        aucs: (C,) on the fold that was held out
        probabilities: (C, held out) of the positive class
        converged: (C,) whether each fit converged
    """

    aucs: Float64
    probabilities: Float64
    converged: Bool


@dataclass(frozen=True)
class FinalResult:
    """Test of the classifier with the chosen C, fitted to the whole development part.

    Attributes:
        probabilities: (test,) of the positive class
        converged: whether the fit converged
        aucs: (C,) test AUC of every C; empty unless the problem asks for it
        classifier: the classifier; None unless the problem asks for it
    """

    probabilities: Float64
    converged: bool
    aucs: Float64
    classifier: Classifier | None = None


@dataclass(frozen=True)
class FittedProbe:
    """The predictions of the classifier with the chosen C, fitted to the whole development part.

    Attributes:
        c: the chosen C
        validation_auc: mean over the folds at that C
        validation: (development,) out-of-fold probabilities at that C, in the order of the development rows
        probabilities: (test,) of the positive class
        converged: whether the final fit converged
        fits: number of fits, of the search and the final one
        unconverged: how many of these did not converge
        aucs: C -> mean validation AUC
        errors: C -> standard error of that mean, over the folds
        test_aucs: C -> test AUC; empty unless the problem asks for it
        at_edge: whether C is an end of a grid of more than one value, so that a better C may lie outside
        classifier: the classifier; None unless the problem asks for it
    """

    c: float
    validation_auc: float
    validation: Float64
    probabilities: Float64
    converged: bool
    fits: int
    unconverged: int
    aucs: dict[float, float]
    errors: dict[float, float]
    test_aucs: dict[float, float]
    at_edge: bool
    classifier: Classifier | None = None


@dataclass(frozen=True)
class FoldFit:
    """A fit of every C of a problem to all folds but one, validated on that fold."""

    problem: str
    fold: int

    def __call__(self, values: Float32, problem: SearchProblem) -> FoldResult:
        """Run the fit on the problem and its feature matrix (N, D)."""
        classes = problem.classes[problem.fold == self.fold]
        assert len(np.unique(classes)) == 2, f"{self} has one class only: cohorts rule that out"
        fits = _fit_and_predict(values, problem, self.fold, problem.c_grid)
        aucs = np.array([roc_auc_score(classes, fit.probabilities) for fit in fits])
        probabilities = np.stack([fit.probabilities for fit in fits])
        return FoldResult(aucs, probabilities, np.array([fit.converged for fit in fits]))

    def __str__(self) -> str:
        return f"{self.problem}, fold {self.fold}"


@dataclass(frozen=True)
class FinalFit:
    """A fit of one C of a problem to its whole development part, which predicts the test part."""

    problem: str
    c: float

    def __call__(self, values: Float32, problem: SearchProblem) -> FinalResult:
        """Run the fit on the problem and its feature matrix (N, D)."""
        grid = _grid(problem) if problem.tests_every_c else [self.c]
        fits = _fit_and_predict(values, problem, -1, grid)
        classes = problem.classes[problem.fold == -1]
        aucs = [roc_auc_score(classes, fit.probabilities) for fit in fits] if problem.tests_every_c else []
        chosen = fits[grid.index(self.c)]
        classifier = chosen.classifier if problem.keeps_classifier else None
        return FinalResult(chosen.probabilities, chosen.converged, np.array(aucs, np.float64), classifier)

    def __str__(self) -> str:
        return f"{self.problem}, all folds"


Fit = FoldFit | FinalFit
FitResult = FoldResult | FinalResult


def fold_fits(problems: Mapping[str, SearchProblem]) -> list[FoldFit]:
    """Return all fold fits, the longest first, so that all cores finish at about the same time."""
    order = sorted(problems, key=lambda name: -problems[name].cost)
    return [FoldFit(name, fold) for name in order for fold in range(problems[name].folds)]


def choose_c(problem: SearchProblem, aucs: Sequence[Float64]) -> float:
    """Return the C that a problem's rule chooses from the validation AUCs (C,) of its folds.

    It is the smallest C with the best mean, or, by the one-standard-error rule of Breiman et al. 1984 ("Classification
    and Regression Trees", section 3.4.3), the smallest whose mean is at most one standard error below the best.
    """
    means, errors = _over_folds(problem, aucs)
    best = max(sorted(means), key=means.__getitem__)
    if not problem.one_standard_error:
        return best
    return min(c for c, mean in means.items() if mean >= means[best] - errors[best])


def _over_folds(problem: SearchProblem, aucs: Sequence[Float64]) -> tuple[dict[float, float], dict[float, float]]:
    """Return C -> mean AUC over the folds, and C -> its standard error."""
    means, errors = np.mean(aucs, axis=0), np.std(aucs, axis=0, ddof=1) / np.sqrt(len(aucs))
    grid = _grid(problem)
    return dict(zip(grid, means.tolist(), strict=True)), dict(zip(grid, errors.tolist(), strict=True))


def _grid(problem: SearchProblem) -> list[float]:
    return list(map(float, problem.c_grid))


def search_serially(features: Mapping[str, Float32], problems: Mapping[str, SearchProblem]) -> dict[str, FittedProbe]:
    """Solve every problem in this process, one fit after the other.

    Args:
        features: feature matrices (N, D) by name
        problems: problems by name

    Returns:
        The fitted probe of each problem, by its name.
    """
    fold_results = {}
    for fold_fit in progress(fold_fits(problems), "choosing C", unit="fold"):
        problem = problems[fold_fit.problem]
        fold_results[fold_fit] = fold_fit(features[problem.features], problem)
    probes = {}
    for name in progress(list(problems), "fitting probes", unit="probe"):
        problem = problems[name]
        of_folds = [fold_results[FoldFit(name, fold)] for fold in range(problem.folds)]
        c = choose_c(problem, [result.aucs for result in of_folds])
        probes[name] = fitted_probe(problem, of_folds, FinalFit(name, c)(features[problem.features], problem))
    return probes


def fitted_probe(problem: SearchProblem, fold_results: Sequence[FoldResult], final: FinalResult) -> FittedProbe:
    """Combine the results of a problem's fold fits, in the order of the folds, and of its final fit."""
    of_folds = [result.aucs for result in fold_results]
    c = choose_c(problem, of_folds)
    aucs, errors = _over_folds(problem, of_folds)
    position = list(aucs).index(c)
    development = problem.fold[problem.fold >= 0]
    out_of_fold = np.empty(len(development))
    for fold, result in enumerate(fold_results):
        out_of_fold[development == fold] = result.probabilities[position]
    converged = np.array([result.converged for result in fold_results])
    return FittedProbe(
        c=c,
        validation_auc=aucs[c],
        validation=out_of_fold,
        probabilities=final.probabilities,
        converged=final.converged,
        fits=converged.size + 1,
        unconverged=int((~converged).sum()) + (not final.converged),
        aucs=aucs,
        errors=errors,
        test_aucs=dict(zip(aucs, final.aucs.tolist(), strict=True)) if problem.tests_every_c else {},
        at_edge=len(aucs) > 1 and c in (min(aucs), max(aucs)),
        classifier=final.classifier,
    )


def _fit_and_predict(values: Float32, problem: SearchProblem, held_out: int, grid: Sequence[float]) -> list[GridFit]:
    """Fit each C to all development folds but one; fold -1 is the test part."""
    training, testing = (problem.fold >= 0) & (problem.fold != held_out), problem.fold == held_out
    return fit_grid(
        values[problem.rows[training]].astype(np.float64),  # once for all C
        problem.classes[training],
        values[problem.rows[testing]].astype(np.float64),
        grid,
        standardize=problem.standardize,
        max_iterations=problem.max_iterations,
    )
