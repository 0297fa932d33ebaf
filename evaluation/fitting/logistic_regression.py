"""The paper's probe: scikit-learn's logistic regression, fitted on one thread for each C of a grid."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from evaluation.results.classifier import Classifier
from infra.arrays import Float32, Float64, Int64


class GridFit(NamedTuple):
    """What one C gives.

    Attributes:
        probabilities: (m,) of the positive class, for the images that were held out
        converged: whether the fit converged
        classifier: the fitted classifier
    """

    probabilities: Float64
    converged: bool
    classifier: Classifier


def fit_grid(
    inside: Float64,
    classes: Int64,
    outside: Float64,
    grid: Sequence[float],
    *,
    standardize: bool,
    max_iterations: int,
) -> list[GridFit]:
    """Fit a classifier for each C and let it predict the images that were held out.

    Args:
        inside: (n, D) features to fit to; overwritten if they are standardized, since they may fill the memory
        classes: (n,) 0 or 1
        outside: (m, D) features to predict; overwritten likewise
        grid: values of C
        standardize: scale each feature to mean 0 and variance 1 over the n images
        max_iterations: most iterations of the solver
    """
    mean, scale = np.zeros(inside.shape[1]), np.ones(inside.shape[1])
    fits = []
    # Features are finite and the parameters are ours, so scikit-learn need not check them again for each small fit.
    unchecked = sklearn.config_context(assume_finite=True, skip_parameter_validation=True)
    with _thread_pools().limit(limits=1), unchecked:
        if standardize:
            scaler = StandardScaler(copy=False).fit(inside)
            inside, outside = scaler.transform(inside), scaler.transform(outside)
            mean, scale = scaler.mean_, scaler.scale_
        for c in grid:
            model, converged = fit_classifier(inside, classes, c, max_iterations)
            classifier = Classifier(mean, scale, model.coef_[0], float(model.intercept_[0]))
            fits.append(GridFit(model.predict_proba(outside)[:, 1], converged, classifier))
    return fits


def fit_classifier(
    values: Float32 | Float64, classes: Int64, c: float, max_iterations: int
) -> tuple[LogisticRegression, bool]:
    """Fit the paper's probe.

    It is scikit-learn's LogisticRegression (lbfgs, L2) in float64 with balanced class weights (Gazda et al. 2021,
    section V B). It runs on one thread, so that the order of sums does not depend on the number of cores.

    Args:
        values: (n, D)
        classes: (n,) 0 or 1
        c: inverse strength of the regularization
        max_iterations: most iterations of the solver

    Returns:
        The classifier, and whether it converged.
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
    """Return the thread limiter. Cached, because finding all libraries takes as long as a small fit."""
    return ThreadpoolController()
