"""Decision curves: whether acting on a probe's probabilities does more good than acting on all patients or on none."""

from typing import Final

import numpy as np

from evaluation.results.scores import DecisionCurve
from infra.arrays import Bool, Float64, Int64

# Finer where the probability is low, which is where decisions about rare findings are made.
THRESHOLDS: Final = (
    0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8,
    0.85, 0.9, 0.95,
)  # fmt: skip


def decision_curve(classes: Int64, probabilities: Float64) -> DecisionCurve:
    """Return the net benefit at each threshold of acting on m images with probabilities (m,) and classes (m,).

    Vickers and Elkin 2006, "Decision curve analysis: a novel method for evaluating prediction models": TP / m - FP / m
    x p / (1 - p), where an image is acted upon if its probability is at least p.
    """
    thresholds = np.array(THRESHOLDS)
    acted, positive = probabilities >= thresholds[:, None], classes == 1
    return DecisionCurve(
        list(THRESHOLDS),
        _net_benefit(acted, positive, thresholds).tolist(),
        _net_benefit(np.ones_like(acted), positive, thresholds).tolist(),
    )


def _net_benefit(acted: Bool, positive: Bool, thresholds: Float64) -> Float64:
    true, false = (acted & positive).mean(axis=1), (acted & ~positive).mean(axis=1)
    benefit: Float64 = true - false * thresholds / (1 - thresholds)
    return benefit
