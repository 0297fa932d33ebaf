"""DeLong's comparison of two AUCs, which needs no resampling: a cross-check of the bootstrap."""

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from evaluation.results.scores import Difference
from evaluation.scoring.scores import Predictions
from infra.arrays import Bool, Float64


def applies(predictions: Predictions) -> bool:
    """Return whether DeLong's assumptions hold: one classifier, one image for each patient, two or more of a class."""
    positive = int(predictions.classes.sum())
    return (
        len(np.unique(predictions.parts)) == 1
        and len(np.unique(predictions.patients)) == len(predictions.patients)
        and min(positive, len(predictions.classes) - positive) > 1
    )


def delong_difference(first: Predictions, second: Predictions) -> Difference:
    """Return the AUC of `first` minus that of `second` on the same m images, with interval and two-sided p-value.

    DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
    characteristic curves: a nonparametric approach"; by ranks as in Sun and Xu 2014. The interval is that of the normal
    distribution. Features that separate the classes completely have a variance of 0 and no interval.
    """
    assert applies(first) and np.array_equal(first.classes, second.classes), "DeLong compares independent images"
    positive = first.classes == 1
    shares = [_placements(predictions.probabilities, positive) for predictions in (first, second)]
    of_positive, of_negative = ([share[mask] for share in shares] for mask in (positive, ~positive))
    difference = float(of_positive[0].mean() - of_positive[1].mean())
    variance = sum(float(np.var(one - other, ddof=1)) / len(one) for one, other in (of_positive, of_negative))
    if variance == 0:
        return Difference(difference) if difference else Difference(0.0, 0.0, 0.0, "DeLong", 1.0)
    error = float(np.sqrt(variance))
    width = float(ndtri(0.975)) * error
    p = float(2 * ndtr(-abs(difference) / error))
    return Difference(difference, difference - width, difference + width, "DeLong", p)


def _placements(values: Float64, positive: Bool) -> Float64:
    """Return for each image (m,) the share of the other class's images on its right side; ties count half."""
    among_all, count = rankdata(values), int(positive.sum())
    shares = np.empty(len(values))
    shares[positive] = (among_all[positive] - rankdata(values[positive])) / (len(values) - count)
    shares[~positive] = 1 - (among_all[~positive] - rankdata(values[~positive])) / count
    return shares
