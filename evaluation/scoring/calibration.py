"""Whether a probe's probabilities mean what they say, before and after Platt scaling."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from evaluation.results.results import Bin, Calibration

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MARGIN: Final = 1e-6  # probabilities are kept this far from 0 and 1, where the logit is infinite
_BINS: Final = 10
_LEAST_IMAGES: Final = 5  # of a bin


def platt(classes: Ints, probabilities: Floats) -> tuple[float, float]:
    """Fit Platt scaling to validation predictions (n,) of both classes; returns slope and intercept on the logit.

    An unpenalised logistic regression of the class on the logit of the probability. Its targets are not 0 and 1 but
    1 / (negatives + 2) and (positives + 1) / (positives + 2), which bounds the slope where the classes are separable.
    Platt 1999, "Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods",
    section 2.2.
    """
    positive = classes == 1
    assert 0 < positive.sum() < len(classes), "Platt scaling needs both classes in validation"
    values = _logit(probabilities)
    # To unit scale, else values close to each other look flat to the solver.
    centre, scale = values.mean(), values.std() if np.ptp(values) > 0 else 1.0
    target = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    # A target between the classes is an image of both, each with its share of the weight.
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        np.tile((values - centre) / scale, 2)[:, None],
        np.repeat([1, 0], len(classes)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(model.coef_[0, 0]) / scale
    return float(slope), float(model.intercept_[0] - slope * centre)


def recalibrate(probabilities: Floats, slope: float, intercept: float) -> Floats:
    """Apply Platt's map to probabilities (n,)."""
    recalibrated: Floats = expit(slope * _logit(probabilities) + intercept)
    return recalibrated


def calibration(classes: Ints, probabilities: Floats, recalibrated: Floats) -> Calibration:
    """Hold test probabilities (n,), as predicted and as `recalibrate` gives them, against the classes (n,).

    Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    prevalence = np.full(len(classes), classes.mean())
    brier, brier_recalibrated, brier_prevalence = (
        float(brier_score_loss(classes, values, pos_label=1)) for values in (probabilities, recalibrated, prevalence)
    )
    bins, bins_recalibrated = (_bins(classes, values) for values in (probabilities, recalibrated))
    return Calibration(brier, brier_recalibrated, brier_prevalence, bins, bins_recalibrated)


def _logit(probabilities: Floats) -> Floats:
    values: Floats = logit(np.clip(probabilities, _MARGIN, 1 - _MARGIN))
    return values


def _bins(classes: Ints, probabilities: Floats) -> list[Bin]:
    """Ten bins of equal counts in ascending order, fewer where images are few; equal probabilities share a bin."""
    wanted = min(_BINS, max(1, len(classes) // _LEAST_IMAGES))
    _, tie, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # of the ranks of equal probabilities
    numbers = (middle * wanted / len(classes)).astype(np.int64)[tie]
    members = (numbers == number for number in np.unique(numbers))
    return [
        Bin(float(probabilities[inside].mean()), float(classes[inside].mean()), int(inside.sum())) for inside in members
    ]
