"""How often each label of a set has each value, so that a manifest says what can be probed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from operator import add


@dataclass(frozen=True)
class LabelCounts:
    """The number of samples of a set by the value of one label.

    Attributes:
        present: samples with 1
        absent: samples with 0
        uncertain: samples with -1
        unknown: samples of which nothing is known
    """

    present: int = 0
    absent: int = 0
    uncertain: int = 0
    unknown: int = 0


def count_labels(samples: Iterable[Mapping[str, int | None]]) -> dict[str, LabelCounts]:
    """Count the values of each label over all samples, by the label's name."""
    counts: dict[str, Counter[int | None]] = defaultdict(Counter)
    for labels in samples:
        for name, value in labels.items():
            counts[name][value] += 1
    return {name: LabelCounts(*(of[value] for value in (1, 0, -1, None))) for name, of in sorted(counts.items())}


def total_labels(parts: Iterable[Mapping[str, LabelCounts]]) -> dict[str, LabelCounts]:
    """Add the counts of several parts of a set, by the label's name."""
    totals: dict[str, LabelCounts] = {}
    for part in parts:
        for name, counts in part.items():
            before = totals.get(name, LabelCounts())
            totals[name] = LabelCounts(*(map(add, astuple(before), astuple(counts))))
    return dict(sorted(totals.items()))
