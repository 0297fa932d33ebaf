"""The choice of a checkpoint without labels, and verdicts on how well each measure would have chosen.

Gazda et al. 2021 leave this question open (section VI): "how to select the optimal checkpoint".
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy.stats import rankdata

from evaluation.results.datasets import TaskKey
from evaluation.results.scores import Estimate
from evaluation.results.selection import MeasureVerdict
from evaluation.selection.label_free import MEASURES, goodness, has_collapsed
from infra.arrays import Float64
from infra.words import counted

LOSS: Final = "pretext loss"
LAST: Final = "last"
RANDOM: Final = "random"
NO_CHOICE: Final = "-"

_DECIDES: Final = "uniformity"
_TIE: Final = 0.01  # of the best value
_LEAST: Final = 3  # checkpoints for a rank correlation


def choose_checkpoint(measured: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """Choose a checkpoint without any label.

    The rule: among the checkpoints that have not collapsed (`label_free.has_collapsed`), take those whose uniformity is
    within 1 % of the lowest, and of these the last. If all have collapsed, take the last, and the reason says so. The
    rule was fixed on one run on simulated radiographs, where ranks such as LiDAR and RankMe preferred the earliest
    checkpoints, before it was tested on real ones: docs/results.md.

    Args:
        measured: checkpoint -> measure -> value, in the order of the steps

    Returns:
        The name of the checkpoint, and the reason as part of a sentence.
    """
    assert measured, "no checkpoint to choose"
    names = list(measured)
    sound = {name: values[_DECIDES] for name, values in measured.items() if not has_collapsed(values)}
    if not sound:
        spread = max(values["spread"] for values in measured.values())
        subject = f"all {len(names)} checkpoints have" if len(names) > 1 else "the only checkpoint has"
        return names[-1], (
            f"{subject} collapsed: features hardly differ between images (spread at most "
            f"{spread:.2g}); none is worth using; this is merely the last"
        )
    best = min(sound, key=lambda name: sound[name])
    chosen = [name for name, value in sound.items() if value <= sound[best] + _TIE * abs(sound[best])][-1]
    collapsed = len(names) - len(sound)
    among = counted(len(sound), "checkpoint") + (f" that did not collapse ({collapsed} did)" if collapsed else "")
    if chosen == best:
        return chosen, f"its {_DECIDES} of {sound[best]:.2f} is the lowest of {among}"
    return chosen, (
        f"its {_DECIDES} of {sound[chosen]:.2f} is within {100 * _TIE:g} % of the lowest of {among}, "
        f"{sound[best]:.2f} of {best}; no later checkpoint's is"
    )


def goodness_of(
    measured: Mapping[str, Mapping[str, float]], losses: Sequence[float] | None = None
) -> dict[str, list[float]]:
    """Return how good each of k checkpoints is by each measure and by its pretext loss, if given; more is better."""
    names = [name for name in MEASURES if all(name in values for values in measured.values())]
    good = {name: [goodness(name, values[name]) for values in measured.values()] for name in names}
    return good if losses is None else {**good, LOSS: [-loss for loss in losses]}


def judge(
    good: Mapping[str, Sequence[float]],
    names: Sequence[str],
    aucs: Float64,
    resampled: Float64,
    *,
    key: TaskKey,
) -> list[MeasureVerdict]:
    """Judge each measure by the test AUCs of k checkpoints, and also the choices "last" and "random".

    Intervals are the 2.5th and 97.5th percentile over the resamples. Each resample finds its own best checkpoint, which
    is too high by chance, so the interval of a small regret lies too high rather than too low.

    Args:
        good: measure -> how good each checkpoint is; more is better, and of equally good ones the last is chosen
        names: names of the checkpoints, in the order of the steps
        aucs: (k,) test AUCs
        resampled: (k, B) test AUCs, with the same resampled patients for all checkpoints; those with a NaN are left out
        key: the task
    """
    assert aucs.shape == (len(names),) and resampled.shape[:1] == aucs.shape, f"{aucs.shape}, {resampled.shape}"
    usable = resampled[:, ~np.isnan(resampled).any(axis=0)]
    goodness_by_choice = {**good, LAST: range(len(names))}
    verdicts = [
        _verdict(measure, np.asarray(values, np.float64), names, aucs, usable, key)
        for measure, values in goodness_by_choice.items()
    ]
    mean_regret = _estimate(float((aucs.max() - aucs).mean()), (usable.max(axis=0) - usable).mean(axis=0))
    return [*verdicts, MeasureVerdict(key.dataset, key.preset, RANDOM, NO_CHOICE, None, mean_regret)]


def _verdict(
    measure: str, good: Float64, names: Sequence[str], aucs: Float64, usable: Float64, key: TaskKey
) -> MeasureVerdict:
    chosen = int(np.flatnonzero(good == good.max())[-1])
    regret = _estimate(float(aucs.max() - aucs[chosen]), usable.max(axis=0) - usable[chosen])
    correlation = float(_spearman(good, aucs[:, None])[0])
    known = len(names) >= _LEAST and not np.isnan(correlation)
    return MeasureVerdict(
        key.dataset,
        key.preset,
        measure,
        names[chosen],
        _estimate(correlation, _spearman(good, usable)) if known else None,
        regret,
    )


def _spearman(good: Float64, aucs: Float64) -> Float64:
    """Return Spearman's correlation of (k,) with each column of (k, B): (B,), NaN if either does not vary.

    scipy's spearmanr would correlate every column with every other.
    """
    good_ranks, auc_ranks = rankdata(good), rankdata(aucs, axis=0)
    good_ranks, auc_ranks = good_ranks - good_ranks.mean(), auc_ranks - auc_ranks.mean(axis=0)
    size = np.sqrt((good_ranks @ good_ranks) * np.square(auc_ranks).sum(axis=0))
    return np.divide(good_ranks @ auc_ranks, size, out=np.full(len(size), np.nan), where=size > 0)


def _estimate(value: float, resampled: Float64) -> Estimate:
    usable = resampled[~np.isnan(resampled)]
    if not len(usable):
        return Estimate(value)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
