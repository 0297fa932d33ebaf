"""The ROC curve of a probe, over all of its test parts."""

import numpy as np
from sklearn.metrics import roc_curve

from evaluation.scoring.scores import Predictions
from infra.arrays import Float64


def sensitivities(predictions: Predictions, rates: Float64) -> Float64:
    """Return the highest sensitivity at each false-positive rate: (R,), for rates (R,) between 0 and 1.

    Images are ranked only within a part. So the curve is the mean over the parts at equal false-positive rates
    (vertical averaging, Fawcett 2006, "An introduction to ROC analysis"). A part counts by its pairs of a positive and
    a negative image, so that the area below the curve is the AUC of the tables.
    """
    total, pairs = np.zeros(len(rates)), 0
    for part in np.unique(predictions.parts):
        inside = predictions.of(predictions.parts == part)
        positives = int(inside.classes.sum())
        of_part = positives * (len(inside.classes) - positives)
        if of_part:
            false_positive_rates, hits, _ = roc_curve(inside.classes, inside.probabilities)
            total += of_part * np.interp(rates, false_positive_rates, hits)
            pairs += of_part
    return total / pairs if pairs else np.full(len(rates), np.nan)
