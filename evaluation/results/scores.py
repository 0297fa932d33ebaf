"""Records of scores: values with their intervals, calibration, and subgroups."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; low and high are None without resamples, or if these give no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """Scores between 0 and 1. The disease is the positive class; f1_negative is the F1 of the healthy class."""

    acc: Estimate
    auc: Estimate
    sen: Estimate
    spe: Estimate
    f1: Estimate
    f1_negative: Estimate


@dataclass(frozen=True)
class Bin:
    """Images of similar predicted probability.

    Attributes:
        predicted: mean predicted probability
        observed: share of positive images
        images: number of images
    """

    predicted: float
    observed: float
    images: int


@dataclass(frozen=True)
class Calibration:
    """Brier scores (0 is best) and reliability curves of the test part.

    Attributes:
        brier: of the probabilities as predicted
        brier_recalibrated: of the probabilities after Platt scaling
        brier_prevalence: of predicting the share of positives in the test part for every image
        bins: reliability curve as predicted
        bins_recalibrated: reliability curve after Platt scaling
    """

    brier: float
    brier_recalibrated: float
    brier_prevalence: float
    bins: list[Bin]
    bins_recalibrated: list[Bin]


@dataclass(frozen=True)
class Subgroup:
    """The test images of one group, such as sex "F"; the scores are None if the group is too small."""

    attribute: str
    group: str
    images: int
    patients: int
    positive: int
    auc: Estimate | None
    sen: Estimate | None
    spe: Estimate | None


@dataclass(frozen=True)
class Gap:
    """The largest difference of AUC between two groups of an attribute.

    The interval is that of the difference between these two groups. They were chosen as the most extreme pair, so the
    interval does not test whether any difference exists: the widest gap among equal groups tends to look real.
    """

    attribute: str
    highest: str
    lowest: str
    auc: Estimate
