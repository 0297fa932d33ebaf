"""ACC, AUC, SEN, SPE and F1 of a probe on its test images, with intervals over patients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtrit

from evaluation.results.results import Estimate, Scores
from infra.rng import uniform

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Figures = dict[str, Floats]  # field of Scores -> (B,) its value in each resample

_CHUNK_WORDS: Final = 1_000_000  # bounds the memory of the bootstrap


@dataclass(frozen=True)
class Predictions:
    """What a probe said of m test images.

    classes: (m,) 1 positive, 0 negative. probabilities: (m,) of the positive class. decisions: (m,) whether the caller
    calls an image positive. patients: (m,) one code for what is resampled as a whole. parts: (m,) images are ranked
    against each other only within a part: in nested cross-validation every outer fold has a classifier of its own,
    whose probabilities are not comparable with another's. An image may occur in several parts.
    """

    classes: Ints
    probabilities: Floats
    decisions: Bools
    patients: Ints
    parts: Ints

    def of(self, inside: Bools) -> "Predictions":
        """Return what was said of some of the images."""
        return Predictions(**{name: values[inside] for name, values in vars(self).items()})


def score(tested: Predictions, *, resamples: int, seed: int) -> Scores:
    """Score the m test images; one part at least must hold both classes.

    Over several parts the AUC is the share of concordant pairs of a positive and a negative image of one part. The
    intervals are those of `estimate` over resampled patients.
    """
    drawn = [figures(tested, weights) for weights in image_weights(tested.patients, resamples=resamples, seed=seed)]
    return summarize(tested, drawn)


def summarize(tested: Predictions, resampled: Sequence[Figures]) -> Scores:
    """Put the intervals of chunks of resampled `figures` around the scores of the m test images."""
    values = figures(tested, np.ones((1, len(tested.classes))))
    assert not np.isnan(values["auc"][0]), "no part of the images to score holds both classes"
    patients = len(np.unique(tested.patients))
    return Scores(
        **{
            name: estimate(float(value), np.concatenate([np.empty(0), *(chunk[name] for chunk in resampled)]), patients)
            for name, [value] in values.items()
        }
    )


def auc_difference(one: Predictions, other: Predictions, *, resamples: int, seed: int) -> Estimate:
    """Return the AUC of `one` less that of `other` on the same images, the same patients drawn for both."""
    for name in ("classes", "patients", "parts"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), f"two probes to compare differ in {name}"
    drawn = [resampled_aucs(tested, resamples=resamples, seed=seed) for tested in (one, other)]
    return estimate_difference(auc(one) - auc(other), drawn[0] - drawn[1])


def auc(tested: Predictions) -> float:
    """Return the AUC as `score` defines it, NaN where no part holds both classes."""
    return float(weighted_aucs(tested, np.ones((1, len(tested.classes))))[0])


def resampled_aucs(tested: Predictions, *, resamples: int, seed: int) -> Floats:
    """Return the AUC of each resample of the patients: (resamples,), NaN where a class is missing.

    The draws depend on the seed and the patients only, so that several feature sets can be compared resample by
    resample.
    """
    drawn = image_weights(tested.patients, resamples=resamples, seed=seed)
    return np.concatenate([np.empty(0), *(weighted_aucs(tested, weights) for weights in drawn)])


def estimate(share: float, resampled: Floats, patients: int) -> Estimate:
    """Put a 95 % interval around a share, from its resamples (B,) over so many patients; NaNs are left out.

    The standard error is the bootstrap's, carried to the logit scale, with Student's t for few patients (Pepe 2003,
    "The Statistical Evaluation of Medical Tests for Classification and Prediction", chapter 5). For few patients and
    shares near 1, percentiles of the resamples reach too high and hold the truth too rarely. A share of 0 or 1 gets no
    interval: where no image errs, none does in any resample, however few they are.
    """
    usable = resampled[~np.isnan(resampled)]
    if len(usable) < 2 or not 0 < share < 1:
        return Estimate(share)
    width = stdtrit(patients - 1, 0.975) * usable.std(ddof=1) / (share * (1 - share))
    return Estimate(share, float(expit(logit(share) - width)), float(expit(logit(share) + width)))


def estimate_difference(difference: float, resampled: Floats) -> Estimate:
    """Put the 2.5th and 97.5th percentile of the resamples (B,) around a difference of shares; NaNs are left out."""
    usable = resampled[~np.isnan(resampled)]
    if len(usable) == 0:
        return Estimate(difference)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Estimate(difference, float(low), float(high))


def figures(tested: Predictions, weights: Floats) -> Figures:
    """Return every field of Scores under each row of weights (B, m): (B,), NaN where a class has no weight."""
    diseased, called = tested.classes == 1, tested.decisions
    cells = np.stack([diseased & called, diseased & ~called, ~diseased & ~called, ~diseased & called], axis=1)
    tp, fn, tn, fp = (weights @ cells.astype(np.float64)).T
    both = (tp + fn > 0) & (tn + fp > 0)
    return {
        "acc": _ratio(tp + tn, tp + fn + tn + fp, both),
        "auc": weighted_aucs(tested, weights),
        "sen": _ratio(tp, tp + fn, both),
        "spe": _ratio(tn, tn + fp, both),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, both),
        "f1_negative": _ratio(2 * tn, 2 * tn + fp + fn, both),
    }


def image_weights(patients: Ints, *, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw whole patients (m,) with replacement and yield how often each image counts: (b, m), in bounded chunks.

    Images of one patient say little that is new of each other: resampling images makes intervals too narrow.
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


def weighted_aucs(tested: Predictions, weights: Floats) -> Floats:
    """Return the AUC under each row of weights (B, m): (B,), NaN where no part has weight in both classes.

    The chance that a positive scores above a negative of its part, ties counted half; of one part, sklearn's
    roc_auc_score(sample_weight=...) for all rows at once, with one sort.
    """
    concordant, pairs = np.zeros((2, len(weights)))
    for part in np.unique(tested.parts):
        positive, negative = (np.flatnonzero((tested.parts == part) & (tested.classes == code)) for code in (1, 0))
        negative = negative[np.argsort(tested.probabilities[negative])]
        below = np.zeros((len(weights), len(negative) + 1))  # the weight of the lowest 0, 1, 2, ... negatives
        np.cumsum(weights[:, negative], axis=1, out=below[:, 1:])
        values = tested.probabilities[negative], tested.probabilities[positive]
        lower, not_above = np.searchsorted(*values, side="left"), np.searchsorted(*values, side="right")
        concordant += (weights[:, positive] * (below[:, lower] + below[:, not_above])).sum(axis=1) / 2
        pairs += weights[:, positive].sum(axis=1) * below[:, -1]
    return _ratio(concordant, pairs, pairs > 0)


def youden_threshold(classes: Ints, probabilities: Floats) -> float:
    """Return the threshold that maximises sensitivity + specificity of `probabilities > threshold` in validation.

    classes and probabilities: (n,), both classes occurring. The threshold lies midway between neighbouring
    probabilities, or between the outermost ones and 0 or 1; of equally good ones it is that nearest 0.5. Youden 1950,
    "Index for rating diagnostic tests".
    """
    bounds = np.unique(np.concatenate([[0.0, 1.0], probabilities]))
    lower, upper = bounds[:-1], bounds[1:]
    middle = (lower + upper) / 2
    between = np.where(middle < upper, middle, lower)  # no number lies between adjacent floats
    candidates = np.append(between, 1.0)  # where a probability is 1, only this calls none positive
    positive, negative = (np.sort(probabilities[classes == code]) for code in (1, 0))
    assert len(positive) > 0 < len(negative), "a threshold needs both classes in validation"
    found = len(positive) - np.searchsorted(positive, candidates, side="right")
    false = len(negative) - np.searchsorted(negative, candidates, side="right")
    index = found * len(negative) - false * len(positive)  # in whole numbers, so that equal ones are equal
    best = candidates[index == index.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _ratio(part: Floats, whole: Floats, defined: Bools) -> Floats:
    """Divide where that is defined, NaN elsewhere."""
    shares: Floats = np.divide(part, whole, out=np.full(len(whole), np.nan), where=defined)
    return shares
