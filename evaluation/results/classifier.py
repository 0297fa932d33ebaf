"""A fitted logistic regression and its recalibration as plain numbers, which need no scikit-learn."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import expit, logit

from infra.arrays import Float32, Float64

_MARGIN: Final = 1e-6  # keeps probabilities away from 0 and 1, where the logit is infinite


@dataclass(frozen=True, eq=False)
class Classifier:
    """Maps features to the probability of the positive class.

    Attributes:
        mean: (D,) subtracted from the features; zeros if they are not standardized
        scale: (D,) by which the difference is divided; ones if they are not standardized
        coefficients: (D,)
        intercept: added to the weighted sum
    """

    mean: Float64
    scale: Float64
    coefficients: Float64
    intercept: float

    def probabilities(self, features: Float32) -> Float64:
        """Return the probability (n,) of the positive class for features (n, D)."""
        standardized = (features.astype(np.float64) - self.mean) / self.scale
        return expit(standardized @ self.coefficients + self.intercept)


def recalibrate(probabilities: Float64, slope: float, intercept: float) -> Float64:
    """Apply Platt's map, a line on the logit scale, to probabilities (n,)."""
    return expit(slope * finite_logit(probabilities) + intercept)


def finite_logit(probabilities: Float64) -> Float64:
    """Return the logit of probabilities (n,), finite for 0 and 1 too."""
    return logit(np.clip(probabilities, _MARGIN, 1 - _MARGIN))
