"""A fitted logistic regression as plain numbers, which needs no scikit-learn."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from infra.arrays import Float32, Float64


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
