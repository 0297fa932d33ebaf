"""95 % intervals over patients: of shares, of differences, and of shares that no test patient contradicts."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from evaluation.results.scores import Difference, Estimate
from infra.arrays import Float64

_TAIL: Final = 0.025  # left out at either end of an interval


@dataclass(frozen=True)
class Evidence:
    """How much the test images of a score say about it.

    Attributes:
        patients: those that the score depends on. For an AUC it is the smaller class's number: of 8 diseased and 400
            healthy patients, the 8 decide how well the standard error itself is known.
        test_share: mean share of all patients that one test part holds; below 1 in cross-validation, where each part
            has its own classifier
    """

    patients: int
    test_share: float = 1.0

    @property
    def variance_factor(self) -> float:
        """By how much cross-validation raises the variance above the bootstrap's, which holds the classifiers fixed.

        The classifiers of J parts share most of their images, so that the scores of two parts are correlated. Nadeau
        and Bengio 2003, "Inference for the generalization error", take the share of a test part, 1 / J, for this
        correlation; the variance of the mean of J such scores is 1 + (J - 1) / J times that of independent ones. They
        take a part's variance from the differences between parts, here it is the bootstrap's, which is steadier. No
        unbiased estimate exists (Bengio and Grandvalet 2004). benchmarks/coverage.py measures what this covers.
        """
        return 2 - self.test_share

    def describe(self, method: str) -> str:
        """Return the name of an interval, with what it rests on."""
        return f"{method}, {self.patients} patients{', cross-validated' if self.test_share < 1 else ''}"


def estimate(share: float, resampled: Float64, evidence: Evidence) -> Estimate:
    """Return a share with its 95 % interval.

    The standard error is that of the bootstrap, on the logit scale, with Student's t for few patients (Pepe 2003, "The
    Statistical Evaluation of Medical Tests for Classification and Prediction", chapter 5). Percentiles of the resamples
    would reach too high for few patients and shares near 1, and cover the truth too rarely. A share of 0 or 1 gets no
    interval here, because every resample equals it; see `exact`.

    Args:
        share: the share, between 0 and 1
        resampled: (B,) the share in each resample; NaNs are left out
        evidence: what it rests on
    """
    error = _standard_error(resampled, evidence)
    if error is None or not 0 < share < 1:
        return Estimate(share)
    width = stdtrit(evidence.patients - 1, 1 - _TAIL) * error / (share * (1 - share))
    low, high = (float(expit(logit(share) + side * width)) for side in (-1, 1))
    return Estimate(share, low, high, evidence.describe("logit-t"))


def estimate_of_mean(mean: float, resampled: Float64, evidence: Evidence) -> Estimate:
    """Return a mean of any numbers with its 95 % interval, of Student's t with the standard error of the bootstrap.

    Args:
        mean: the mean
        resampled: (B,) the mean in each resample
        evidence: what it rests on
    """
    error = _standard_error(resampled, evidence)
    if error is None:
        return Estimate(mean)
    width = float(stdtrit(evidence.patients - 1, 1 - _TAIL)) * error
    return Estimate(mean, mean - width, mean + width, evidence.describe("t"))


def exact(share: float, evidence: Evidence) -> Estimate:
    """Return a share of 0 or 1 with the exact interval of Clopper and Pearson 1934.

    It counts a patient once, however many images there are, which is right if a patient's images are all alike and
    wider than needed otherwise. An AUC of 1 has it too, with the number of patients in the smaller class: each of these
    can be paired with another patient of the larger class, so that complete separation includes that many independent
    pairs in the right order, and its chance is at most AUC ** patients.
    """
    assert share in (0, 1), f"{share} is contradicted by some patients"
    reach = _TAIL ** (evidence.variance_factor / evidence.patients)
    low, high = (reach, 1.0) if share == 1 else (0.0, 1 - reach)
    return Estimate(share, low, high, evidence.describe("exact"))


def exact_f1(share: float, evidence: Evidence) -> Estimate:
    """Return an F1 of 0 or 1 with its exact interval: F1 = 2 J / (1 + J) for the share J = TP / (TP + FP + FN)."""
    jaccard = exact(share, evidence)
    assert jaccard.low is not None and jaccard.high is not None
    low, high = (2 * bound / (1 + bound) for bound in (jaccard.low, jaccard.high))
    return Estimate(share, low, high, jaccard.method)


def estimate_difference(first: Estimate, second: Estimate, resampled: Float64, evidence: Evidence) -> Difference:
    """Return the first AUC minus the second, with its 95 % interval and two-sided p-value.

    Both are of Student's t with the standard error of the bootstrap. If an AUC is 0 or 1, its resamples do not vary, so
    its exact interval is combined with that of the other one as if they were independent (square-and-add, Newcombe
    1998), which is too wide for similar features.

    Args:
        first: AUC of one set of features or patients
        second: AUC of another
        resampled: (B,) the difference in each resample; NaNs are left out
        evidence: what it rests on
    """
    difference = first.value - second.value
    if not (0 < first.value < 1 and 0 < second.value < 1):
        return _square_and_add(first, second, evidence)
    error = _standard_error(resampled, evidence)
    if error is None or (error == 0 and difference != 0):
        return Difference(difference)
    width = float(stdtrit(evidence.patients - 1, 1 - _TAIL)) * error
    p = _p_value(difference, error, evidence)
    return Difference(difference, difference - width, difference + width, evidence.describe("t"), p)


def _square_and_add(first: Estimate, second: Estimate, evidence: Evidence) -> Difference:
    difference = first.value - second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Difference(difference)
    below = float(np.hypot(first.value - first.low, second.high - second.value))
    above = float(np.hypot(first.high - first.value, second.value - second.low))
    p = 1.0
    if difference and evidence.patients > 1:
        toward_zero = below if difference > 0 else above
        p = _p_value(difference, toward_zero / float(stdtrit(evidence.patients - 1, 1 - _TAIL)), evidence)
    return Difference(difference, difference - below, difference + above, evidence.describe("square-and-add"), p)


def _p_value(difference: float, error: float, evidence: Evidence) -> float:
    return float(2 * stdtr(evidence.patients - 1, -abs(difference) / error)) if difference else 1.0


def _standard_error(resampled: Float64, evidence: Evidence) -> float | None:
    """Return the standard error; None if there are too few resamples or patients for one.

    The bootstrap's variance is (n - 1) / n of the unbiased one for n patients (Efron and Tibshirani 1993, "An
    Introduction to the Bootstrap", section 5.3), which matters for few of them.
    """
    usable, count = resampled[~np.isnan(resampled)], evidence.patients
    if len(usable) < 2 or count < 2:
        return None
    return float(usable.std(ddof=1) * np.sqrt(evidence.variance_factor * count / (count - 1)))
