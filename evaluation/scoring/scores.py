"""ACC, AUC, SEN, SPE and F1 of predictions, with intervals over patients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import expit, logit, stdtrit

from evaluation.results.scores import Estimate, Scores
from infra.arrays import Bool, Float64, Int64
from infra.rng import uniform

ResampledScores = dict[str, Float64]  # field of Scores -> (B,) its value in each resample

_CHUNK_WORDS: Final = 1_000_000  # bounds the memory of the bootstrap


@dataclass(frozen=True)
class Predictions:
    """The predictions of a probe for m test images.

    Attributes:
        classes: (m,) 1 positive, 0 negative
        probabilities: (m,) of the positive class
        decisions: (m,) whether the probe calls the image positive
        patients: (m,) codes; the images of a patient are resampled together
        parts: (m,) images are ranked against each other only within a part, because each outer fold of a nested
            cross-validation has its own classifier, whose probabilities do not compare with another's; an image may
            occur in several parts
    """

    classes: Int64
    probabilities: Float64
    decisions: Bool
    patients: Int64
    parts: Int64

    def of(self, chosen: Bool | Int64) -> "Predictions":
        """Return the predictions for the chosen images."""
        return Predictions(**{name: values[chosen] for name, values in vars(self).items()})


def score(predictions: Predictions, *, resamples: int, seed: int) -> Scores:
    """Score m test images; at least one part must hold both classes.

    Over several parts the AUC is the share of concordant pairs of a positive and a negative image of the same part.
    The intervals are those of `estimate` over resampled patients.
    """
    resampled = [
        weighted_scores(predictions, weights)
        for weights in image_weights(predictions.patients, resamples=resamples, seed=seed)
    ]
    return summarize(predictions, resampled)


def summarize(predictions: Predictions, resampled: Sequence[ResampledScores]) -> Scores:
    """Return the scores of m test images with intervals from resampled scores, which come in chunks."""
    values = weighted_scores(predictions, np.ones((1, len(predictions.classes))))
    assert not np.isnan(values["auc"][0]), "no part of the images to score holds both classes"
    patients = len(np.unique(predictions.patients))
    return Scores(
        **{
            name: estimate(float(value), np.concatenate([np.empty(0), *(chunk[name] for chunk in resampled)]), patients)
            for name, [value] in values.items()
        }
    )


def auc_difference(first: Predictions, second: Predictions, *, resamples: int, seed: int) -> Estimate:
    """Return the AUC of `first` minus that of `second` on the same images, with the same patients drawn for both."""
    for name in ("classes", "patients", "parts"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), f"two probes to compare differ in {name}"
    resampled = [resampled_aucs(predictions, resamples=resamples, seed=seed) for predictions in (first, second)]
    return estimate_difference(auc(first) - auc(second), resampled[0] - resampled[1])


def auc(predictions: Predictions) -> float:
    """Return the AUC as `score` defines it; NaN if no part holds both classes."""
    return float(weighted_aucs(predictions, np.ones((1, len(predictions.classes))))[0])


def resampled_aucs(predictions: Predictions, *, resamples: int, seed: int) -> Float64:
    """Return the AUC of each resample of the patients: (resamples,), NaN if a class is missing.

    The draws depend only on the seed and the patients, so that feature sets can be compared resample by resample.
    """
    chunks = image_weights(predictions.patients, resamples=resamples, seed=seed)
    return np.concatenate([np.empty(0), *(weighted_aucs(predictions, weights) for weights in chunks)])


def estimate(share: float, resampled: Float64, patients: int) -> Estimate:
    """Return a share with its 95 % interval.

    The standard error is that of the bootstrap, on the logit scale, with Student's t for few patients (Pepe 2003, "The
    Statistical Evaluation of Medical Tests for Classification and Prediction", chapter 5). Percentiles of the resamples
    would reach too high for few patients and shares near 1, and cover the truth too rarely. A share of 0 or 1 gets no
    interval: if every image is right, every resample is right too, however few the images.

    Args:
        share: the share, between 0 and 1
        resampled: (B,) the share in each resample; NaNs are left out
        patients: number of patients resampled
    """
    usable = resampled[~np.isnan(resampled)]
    if len(usable) < 2 or not 0 < share < 1:
        return Estimate(share)
    width = stdtrit(patients - 1, 0.975) * usable.std(ddof=1) / (share * (1 - share))
    return Estimate(share, float(expit(logit(share) - width)), float(expit(logit(share) + width)))


def estimate_difference(difference: float, resampled: Float64) -> Estimate:
    """Return a difference with the 2.5th and 97.5th percentile of its resamples (B,); NaNs are left out."""
    usable = resampled[~np.isnan(resampled)]
    if len(usable) == 0:
        return Estimate(difference)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Estimate(difference, float(low), float(high))


def weighted_scores(predictions: Predictions, weights: Float64) -> ResampledScores:
    """Return each field of Scores under each row of weights (B, m): (B,), NaN if a class has no weight."""
    diseased, positive = predictions.classes == 1, predictions.decisions
    cells = np.stack([diseased & positive, diseased & ~positive, ~diseased & ~positive, ~diseased & positive], axis=1)
    tp, fn, tn, fp = (weights @ cells.astype(np.float64)).T
    both = (tp + fn > 0) & (tn + fp > 0)
    return {
        "acc": _ratio(tp + tn, tp + fn + tn + fp, both),
        "auc": weighted_aucs(predictions, weights),
        "sen": _ratio(tp, tp + fn, both),
        "spe": _ratio(tn, tn + fp, both),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, both),
        "f1_negative": _ratio(2 * tn, 2 * tn + fp + fn, both),
    }


def image_weights(patients: Int64, *, resamples: int, seed: int) -> Iterator[Float64]:
    """Draw whole patients (m,) with replacement and yield how often each image counts: (b, m), in bounded chunks.

    Images of one patient add little to each other, so resampling single images would make intervals too narrow.
    """
    codes, patient = np.unique(patients, return_inverse=True)
    count = len(codes)
    step = max(1, _CHUNK_WORDS // len(patient))
    for first in range(0, resamples, step):
        items = np.arange(first, min(first + step, resamples), dtype=np.uint64)
        drawn = (uniform(seed, "probe-bootstrap", items, 0, count) * count).astype(np.int64)
        cells = drawn + count * np.arange(len(items))[:, None]  # (b, patients)
        times = np.bincount(cells.ravel(), minlength=len(items) * count).reshape(len(items), count)
        yield times[:, patient].astype(np.float64)


def weighted_aucs(predictions: Predictions, weights: Float64) -> Float64:
    """Return the AUC under each row of weights (B, m): (B,), NaN if no part has weight in both classes.

    It is the chance that a positive scores above a negative of its part, where ties count half. With one part it equals
    scikit-learn's roc_auc_score(sample_weight=...), for all rows at once and with a single sort.
    """
    concordant, pairs = np.zeros((2, len(weights)))
    for part in np.unique(predictions.parts):
        positive, negative = (
            np.flatnonzero((predictions.parts == part) & (predictions.classes == code)) for code in (1, 0)
        )
        negative = negative[np.argsort(predictions.probabilities[negative])]
        below = np.zeros((len(weights), len(negative) + 1))  # the weight of the lowest 0, 1, 2, ... negatives
        np.cumsum(weights[:, negative], axis=1, out=below[:, 1:])
        values = predictions.probabilities[negative], predictions.probabilities[positive]
        lower, not_above = np.searchsorted(*values, side="left"), np.searchsorted(*values, side="right")
        concordant += (weights[:, positive] * (below[:, lower] + below[:, not_above])).sum(axis=1) / 2
        pairs += weights[:, positive].sum(axis=1) * below[:, -1]
    return _ratio(concordant, pairs, pairs > 0)


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


def _ratio(part: Float64, whole: Float64, defined: Bool) -> Float64:
    """Divide where `defined`, with NaN elsewhere."""
    shares: Float64 = np.divide(part, whole, out=np.full(len(whole), np.nan), where=defined)
    return shares
