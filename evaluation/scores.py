"""ACC, AUC, SEN, SPE and F1 of a probe on its test part, and the interval of the AUC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from infra.rng import uniform

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_THRESHOLD: Final = 0.5
_CHUNK_WORDS: Final = 4_000_000  # bounds the memory of the bootstrap


@dataclass(frozen=True)
class Scores:
    """All between 0 and 1; the disease is the positive class and the threshold 0.5.

    f1_negative is the F1 of the healthy class. auc_low and auc_high bound the AUC with 95 % (percentile bootstrap over
    patients); None when no resamples were asked for.
    """

    acc: float
    auc: float
    sen: float
    spe: float
    f1: float
    f1_negative: float
    auc_low: float | None
    auc_high: float | None


def score(classes: Ints, probabilities: Floats, patients: Ints, *, resamples: int, seed: int) -> Scores:
    """Score the probabilities (n,) of the positive class against the true classes (n,) of patients (n,)."""
    predicted = (probabilities > _THRESHOLD).astype(np.int64)
    low, high = auc_interval(classes, probabilities, patients, resamples=resamples, seed=seed)
    return Scores(
        acc=float(metrics.accuracy_score(classes, predicted)),
        auc=float(metrics.roc_auc_score(classes, probabilities)),
        sen=float(metrics.recall_score(classes, predicted, pos_label=1, zero_division=0)),
        spe=float(metrics.recall_score(classes, predicted, pos_label=0, zero_division=0)),
        f1=float(metrics.f1_score(classes, predicted, pos_label=1, zero_division=0)),
        f1_negative=float(metrics.f1_score(classes, predicted, pos_label=0, zero_division=0)),
        auc_low=low,
        auc_high=high,
    )


def auc_interval(
    classes: Ints, probabilities: Floats, patients: Ints, *, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Return the 2.5th and 97.5th percentile of the AUC over resampled patients.

    Whole patients are drawn, since images of one patient say little that is new of another: resampling images makes
    intervals too narrow. Resamples without both classes are left out; without any left there is no interval.
    """
    aucs = np.concatenate([np.empty(0), *_resampled_aucs(classes, probabilities, patients, resamples, seed)])
    aucs = aucs[~np.isnan(aucs)]
    if len(aucs) == 0:
        return None, None
    low, high = np.percentile(aucs, [2.5, 97.5])
    return float(low), float(high)


def _resampled_aucs(
    classes: Ints, probabilities: Floats, patients: Ints, resamples: int, seed: int
) -> Iterator[Floats]:
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1
    step = max(1, _CHUNK_WORDS // max(count, len(classes)))
    for first in range(0, resamples, step):
        items = np.arange(first, min(first + step, resamples), dtype=np.uint64)
        drawn = (uniform(seed, "probe-bootstrap", items, 0, count) * count).astype(np.int64)
        weights = np.stack([np.bincount(row, minlength=count)[patient] for row in drawn])
        yield weighted_aucs(classes, probabilities, weights.astype(np.float64))


def weighted_aucs(classes: Ints, scores: Floats, weights: Floats) -> Floats:
    """Return the AUC under each row of weights (B, n): (B,), NaN where a class has no weight.

    The chance that a positive scores above a negative, ties counted half: sklearn's roc_auc_score(sample_weight=...)
    for all rows at once, with one sort.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positive = np.add.reduceat(weights[:, order] * (classes[order] == 1), starts, axis=1)  # (B, distinct scores)
    negative = np.add.reduceat(weights[:, order] * (classes[order] == 0), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    aucs: Floats = np.divide((positive * below).sum(axis=1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return aucs
