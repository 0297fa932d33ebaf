"""ACC, AUC, average precision, SEN, SPE and F1 of predictions, with intervals over patients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.results.scores import Difference, Estimate, Scores
from evaluation.scoring.intervals import Evidence, estimate, estimate_difference, exact, exact_f1
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

    Over several parts the AUC is the share of concordant pairs of a positive and a negative image of the same part, and
    the average precision is the mean of each part's, weighted by its positive images. The intervals are those of
    `estimate` over resampled patients, and exact ones for shares of 0 and 1; an average precision of 1 has none.
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
    evidence = score_evidence(predictions)
    return Scores(
        **{name: _estimate(float(value), name, resampled, evidence[name]) for name, [value] in values.items()}
    )


def _estimate(value: float, name: str, resampled: Sequence[ResampledScores], evidence: Evidence) -> Estimate:
    """Return one field of Scores with its interval; without resamples, none is asked for."""
    if not resampled or (name == "ap" and value == 1):
        return Estimate(value)
    if value in (0, 1):
        return exact_f1(value, evidence) if name.startswith("f1") else exact(value, evidence)
    return estimate(value, np.concatenate([chunk[name] for chunk in resampled]), evidence)


def score_evidence(predictions: Predictions) -> dict[str, Evidence]:
    """Return what each field of Scores rests on."""
    parts, part = np.unique(predictions.parts, return_inverse=True)
    patients, patient = np.unique(predictions.patients, return_inverse=True)
    tested = len(np.unique(patient * len(parts) + part)) / (len(patients) * len(parts))
    of_class = [len(np.unique(patient[predictions.classes == code])) for code in (0, 1)]
    healthy, diseased = (Evidence(count, tested) for count in of_class)
    smaller = Evidence(min(of_class), tested)
    return {
        **{"acc": Evidence(len(patients), tested), "auc": smaller, "ap": smaller},
        **{"sen": diseased, "spe": healthy, "f1": diseased, "f1_negative": healthy},
    }


def auc_evidence(predictions: Predictions) -> Evidence:
    """Return what an AUC rests on: the patients of the smaller class."""
    return score_evidence(predictions)["auc"]


def auc_estimate(predictions: Predictions, resampled: Float64, value: float | None = None) -> Estimate:
    """Return the AUC, or a `value` such as the mean of the parts' AUCs, with its interval from resampled AUCs (B,)."""
    value = auc(predictions) if value is None else value
    return _estimate(value, "auc", [{"auc": resampled}] if len(resampled) else [], auc_evidence(predictions))


def auc_difference(first: Predictions, second: Predictions, *, resamples: int, seed: int) -> Difference:
    """Return the AUC of `first` minus that of `second` on the same images, with the same patients drawn for both."""
    for name in ("classes", "patients", "parts"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), f"two probes to compare differ in {name}"
    of_first, of_second = (resampled_aucs(item, resamples=resamples, seed=seed) for item in (first, second))
    aucs = auc_estimate(first, of_first), auc_estimate(second, of_second)
    return estimate_difference(*aucs, of_first - of_second, auc_evidence(first))


def auc(predictions: Predictions) -> float:
    """Return the AUC as `score` defines it; NaN if no part holds both classes."""
    return float(weighted_aucs(predictions, np.ones((1, len(predictions.classes))))[0])


def resampled_aucs(predictions: Predictions, *, resamples: int, seed: int) -> Float64:
    """Return the AUC of each resample of the patients: (resamples,), NaN if a class is missing.

    The draws depend only on the seed and the patients, so that feature sets can be compared resample by resample.
    """
    chunks = image_weights(predictions.patients, resamples=resamples, seed=seed)
    return np.concatenate([np.empty(0), *(weighted_aucs(predictions, weights) for weights in chunks)])


def weighted_scores(predictions: Predictions, weights: Float64) -> ResampledScores:
    """Return each field of Scores under each row of weights (B, m): (B,), NaN if a class has no weight."""
    diseased, positive = predictions.classes == 1, predictions.decisions
    cells = np.stack([diseased & positive, diseased & ~positive, ~diseased & ~positive, ~diseased & positive], axis=1)
    tp, fn, tn, fp = (weights @ cells.astype(np.float64)).T
    both = (tp + fn > 0) & (tn + fp > 0)
    return {
        "acc": _ratio(tp + tn, tp + fn + tn + fp, both),
        "auc": weighted_aucs(predictions, weights),
        "ap": weighted_average_precisions(predictions, weights),
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


def weighted_average_precisions(predictions: Predictions, weights: Float64) -> Float64:
    """Return the average precision under each row of weights (B, m): (B,), NaN if no part has weight in both classes.

    It is the mean, over the positives, of the share of positives among the images of their part that score at least as
    high. With one part it equals scikit-learn's average_precision_score(sample_weight=...).
    """
    total, count = np.zeros((2, len(weights)))
    for part in np.unique(predictions.parts):
        inside = np.flatnonzero(predictions.parts == part)
        inside = inside[np.argsort(-predictions.probabilities[inside])]
        falling = -predictions.probabilities[inside]
        diseased = predictions.classes[inside] == 1
        weight = weights[:, inside]
        called, found = np.cumsum(weight, axis=1), np.cumsum(weight * diseased, axis=1)
        last = np.searchsorted(falling, falling[diseased], side="right") - 1  # of the images that score the same
        precision = np.divide(
            found[:, last], called[:, last], out=np.zeros((len(weights), len(last))), where=called[:, last] > 0
        )
        both = (found[:, -1] > 0) & (called[:, -1] > found[:, -1])
        total += both * (weight[:, diseased] * precision).sum(axis=1)
        count += both * found[:, -1]
    return _ratio(total, count, count > 0)


def _ratio(part: Float64, whole: Float64, defined: Bool) -> Float64:
    """Divide where `defined`, with NaN elsewhere."""
    shares: Float64 = np.divide(part, whole, out=np.full(len(whole), np.nan), where=defined)
    return shares
