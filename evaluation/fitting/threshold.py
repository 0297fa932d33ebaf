"""The threshold above which a probability is called positive."""

from typing import Final

import numpy as np

from evaluation.results.presets import Preset
from infra.arrays import Float64, Int64

_HALF: Final = 0.5


def threshold_of(preset: Preset, classes: Int64, probabilities: Float64) -> float:
    """Return the threshold that a preset takes: 0.5, or Youden's on validation images.

    Args:
        preset: the protocol
        classes: (n,) of the validation images
        probabilities: (n,) of the positive class
    """
    return youden_threshold(classes, probabilities) if preset.chooses_threshold else _HALF


def youden_threshold(classes: Int64, probabilities: Float64) -> float:
    """Return the threshold that maximizes sensitivity + specificity of `probabilities > threshold`.

    It lies midway between neighboring probabilities, or between an outermost one and 0 or 1. Of equally good
    thresholds, the one nearest 0.5 is taken. Youden 1950, "Index for rating diagnostic tests".

    Args:
        classes: (n,) of validation images, both classes present
        probabilities: (n,) of the positive class
    """
    bounds = np.unique(np.concatenate([[0.0, 1.0], probabilities]))
    lower, upper = bounds[:-1], bounds[1:]
    middle = (lower + upper) / 2
    between = np.where(middle < upper, middle, lower)  # there is no number between adjacent floats
    candidates = np.append(between, 1.0)  # if a probability is 1, only this threshold calls no image positive
    positive, negative = (np.sort(probabilities[classes == code]) for code in (1, 0))
    assert len(positive) > 0 < len(negative), "a threshold needs both classes in validation"
    true_positive = len(positive) - np.searchsorted(positive, candidates, side="right")
    false_positive = len(negative) - np.searchsorted(negative, candidates, side="right")
    # In whole numbers, so that equally good thresholds compare as equal.
    index = true_positive * len(negative) - false_positive * len(positive)
    best = candidates[index == index.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
