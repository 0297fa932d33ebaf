"""Calibration of a probe's probabilities, before and after Platt scaling."""

from typing import Final

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from evaluation.results.classifier import finite_logit
from evaluation.results.scores import Bin, Calibration
from evaluation.scoring.decision_curves import decision_curve
from infra.arrays import Float64, Int64

_BINS: Final = 10
_LEAST_IMAGES: Final = 5  # in a bin


def platt(classes: Int64, probabilities: Float64) -> tuple[float, float]:
    """Fit Platt scaling to validation predictions.

    This is an unpenalized logistic regression of the class on the logit of the probability. Its targets are not 0 and 1
    but 1 / (negatives + 2) and (positives + 1) / (positives + 2), which bounds the slope if the classes are separable.
    Platt 1999, "Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods",
    section 2.2.

    Args:
        classes: (n,) 0 or 1, both present
        probabilities: (n,) of the positive class

    Returns:
        Slope and intercept on the logit scale.
    """
    positive = classes == 1
    assert 0 < positive.sum() < len(classes), "Platt scaling needs both classes in validation"
    values = finite_logit(probabilities)
    # Unit scale, because values close to each other look flat to the solver.
    center, scale = values.mean(), values.std() if np.ptp(values) > 0 else 1.0
    target = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    # A target between the classes is expressed as one image of each class, weighted by its share.
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        np.tile((values - center) / scale, 2)[:, None],
        np.repeat([1, 0], len(classes)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(model.coef_[0, 0]) / scale
    return float(slope), float(model.intercept_[0] - slope * center)


def calibration(classes: Int64, probabilities: Float64, recalibrated: Float64) -> Calibration:
    """Compare test probabilities (n,), as predicted and as recalibrated, with the classes (n,).

    Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    prevalence = np.full(len(classes), classes.mean())
    brier, brier_recalibrated, brier_prevalence = (
        float(brier_score_loss(classes, values, pos_label=1)) for values in (probabilities, recalibrated, prevalence)
    )
    bins, bins_recalibrated = (_bins(classes, values) for values in (probabilities, recalibrated))
    decisions = decision_curve(classes, recalibrated)
    return Calibration(brier, brier_recalibrated, brier_prevalence, bins, bins_recalibrated, decisions)


def _bins(classes: Int64, probabilities: Float64) -> list[Bin]:
    """Return ten bins of equal counts in ascending order, fewer for few images; equal probabilities share a bin."""
    bins = min(_BINS, max(1, len(classes) // _LEAST_IMAGES))
    _, rank, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # of the ranks of equal probabilities
    numbers = (middle * bins / len(classes)).astype(np.int64)[rank]
    members = (numbers == number for number in np.unique(numbers))
    return [
        Bin(float(probabilities[inside].mean()), float(classes[inside].mean()), int(inside.sum())) for inside in members
    ]
