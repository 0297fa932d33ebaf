"""Records of scores: values with their intervals, calibration, and subgroups."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: the value
        low: None without resamples, or if these give no interval
        high: likewise
        method: how the interval was made, and of how many patients, such as "logit-t, 234 patients"; None without one,
            and in results of version 2
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """A difference of two scores with its 95 % interval, and the two-sided p-value of no difference."""

    p: float | None = None


@dataclass(frozen=True)
class Scores:
    """Scores between 0 and 1. The disease is the positive class.

    Attributes:
        acc: accuracy
        auc: area under the ROC curve
        sen: sensitivity
        spe: specificity
        f1: F1 of the positive class
        f1_negative: F1 of the healthy class
        ap: average precision of the positive class, whose chance level is the share of positives; None in results of
            version 2
    """

    acc: Estimate
    auc: Estimate
    sen: Estimate
    spe: Estimate
    f1: Estimate
    f1_negative: Estimate
    ap: Estimate | None = None


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
class DecisionCurve:
    """Net benefit of acting on recalibrated probabilities: true positives minus weighted false positives, per image.

    A threshold p says how many false positives one true positive is worth, (1 - p) / p. Treating nobody has a net
    benefit of 0. All figures hold at the test part's share of positives, also where it was balanced.

    Attributes:
        thresholds: (T,) probabilities from which on an image is acted upon
        net_benefit: (T,) of acting on the probe
        treat_all: (T,) of acting on every image
    """

    thresholds: list[float]
    net_benefit: list[float]
    treat_all: list[float]


@dataclass(frozen=True)
class Calibration:
    """Brier scores (0 is best), reliability curves and decision curve of the test part.

    Attributes:
        brier: of the probabilities as predicted
        brier_recalibrated: of the probabilities after Platt scaling
        brier_prevalence: of predicting the share of positives in the test part for every image
        bins: reliability curve as predicted
        bins_recalibrated: reliability curve after Platt scaling
        decisions: decision curve after Platt scaling; None in results of version 2
    """

    brier: float
    brier_recalibrated: float
    brier_prevalence: float
    bins: list[Bin]
    bins_recalibrated: list[Bin]
    decisions: DecisionCurve | None = None


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
    auc: Difference
