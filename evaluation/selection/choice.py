"""Which checkpoint to take: the choice that needs no label, and how well each measure would have chosen.

The question that Gazda et al. 2021 leave open (section VI): "how to select the optimal checkpoint".
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from evaluation.results.results import Estimate
from evaluation.results.selection import MeasureVerdict
from evaluation.selection.label_free import MEASURES, goodness, has_collapsed

Floats = npt.NDArray[np.float64]

LOSS: Final = "pretext loss"
LAST: Final = "last"
RANDOM: Final = "random"
NO_CHOICE: Final = "-"

_DECIDES: Final = "uniformity"
_TIE: Final = 0.01  # a share of the best
_LEAST: Final = 3  # checkpoints that a rank correlation is taken of


def choose_checkpoint(measured: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """Choose a checkpoint without any label, and say why.

    measured: the measures of each checkpoint, in the order of their steps. The rule: of the checkpoints that have not
    collapsed (`label_free.has_collapsed`), those whose uniformity is within 1 % of the lowest, and of these the last.
    Where all have collapsed, the last, with a plain word. It was fixed on one run on simulated radiographs, where ranks
    such as LiDAR and RankMe preferred the earliest checkpoints, before it was held against real ones: docs/results.md.
    """
    assert measured, "there is a checkpoint to choose"
    names = list(measured)
    sound = {name: values[_DECIDES] for name, values in measured.items() if not has_collapsed(values)}
    if not sound:
        spread = max(values["spread"] for values in measured.values())
        return names[-1], (
            f"all {len(names)} checkpoints have collapsed: their features hardly differ between images (spread at most "
            f"{spread:.2g}); none is worth using, this is merely the last"
        )
    best = min(sound, key=lambda name: sound[name])
    chosen = [name for name, value in sound.items() if value <= sound[best] + _TIE * abs(sound[best])][-1]
    collapsed = len(names) - len(sound)
    among = f"{len(sound)} checkpoints" + (f" that have not collapsed ({collapsed} have)" if collapsed else "")
    if chosen == best:
        return chosen, f"its {_DECIDES} of {sound[best]:.2f} is the lowest of {among}"
    return chosen, (
        f"its {_DECIDES} of {sound[chosen]:.2f} is within {100 * _TIE:g} % of the lowest of {among}, "
        f"{sound[best]:.2f} of {best}, and it is the last such"
    )


def goodness_of(
    measured: Mapping[str, Mapping[str, float]], losses: Sequence[float] | None = None
) -> dict[str, list[float]]:
    """Return how good each of k checkpoints is by each measure, more being better; by its pretext loss too if given."""
    found = {name: [goodness(name, values[name]) for values in measured.values()] for name in MEASURES}
    return found if losses is None else {**found, LOSS: [-loss for loss in losses]}


def judge(
    good: Mapping[str, Sequence[float]],
    names: Sequence[str],
    aucs: Floats,
    resampled: Floats,
    *,
    dataset: str,
    preset: str,
) -> list[MeasureVerdict]:
    """Judge each measure by the test AUCs of k checkpoints, and with them the last checkpoint and a random one.

    good: how good each checkpoint is by each measure, more being better. names: in the order of their steps; of equally
    good ones the last is chosen. aucs: (k,). resampled: (k, B), of the same resampled patients for all checkpoints;
    those with a NaN are left out. Intervals are the 2.5th and 97.5th percentile over them. The best checkpoint is found
    anew in each, by chance higher than it is, so the interval of a small regret lies high rather than low.
    """
    assert aucs.shape == (len(names),) and resampled.shape[:1] == aucs.shape, f"{aucs.shape}, {resampled.shape}"
    usable = resampled[:, ~np.isnan(resampled).any(axis=0)]
    found = {**good, LAST: range(len(names))}
    verdicts = [
        _verdict(measure, np.asarray(values, np.float64), names, aucs, usable, dataset, preset)
        for measure, values in found.items()
    ]
    mean_regret = _estimate(float((aucs.max() - aucs).mean()), (usable.max(axis=0) - usable).mean(axis=0))
    return [*verdicts, MeasureVerdict(dataset, preset, RANDOM, NO_CHOICE, None, mean_regret)]


def _verdict(
    measure: str, good: Floats, names: Sequence[str], aucs: Floats, usable: Floats, dataset: str, preset: str
) -> MeasureVerdict:
    chosen = int(np.flatnonzero(good == good.max())[-1])
    regret = _estimate(float(aucs.max() - aucs[chosen]), usable.max(axis=0) - usable[chosen])
    correlation = float(_spearman(good, aucs[:, None])[0])
    known = len(names) >= _LEAST and not np.isnan(correlation)
    return MeasureVerdict(
        dataset,
        preset,
        measure,
        names[chosen],
        _estimate(correlation, _spearman(good, usable)) if known else None,
        regret,
    )


def _spearman(good: Floats, aucs: Floats) -> Floats:
    """Return Spearman's correlation of (k,) with each column of (k, B): (B,), NaN where either does not vary.

    scipy's spearmanr of k-by-(1 + B) would correlate every column with every other.
    """
    one, other = rankdata(good), rankdata(aucs, axis=0)
    one, other = one - one.mean(), other - other.mean(axis=0)
    size = np.sqrt((one @ one) * np.square(other).sum(axis=0))
    correlations: Floats = np.divide(one @ other, size, out=np.full(len(size), np.nan), where=size > 0)
    return correlations


def _estimate(value: float, resampled: Floats) -> Estimate:
    usable = resampled[~np.isnan(resampled)]
    if not len(usable):
        return Estimate(value)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
