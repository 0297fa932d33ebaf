"""Siblings: other images of a sample's study or patient, one of which its second view may show.

Two images of a patient differ in more than augmentations can change, so a network learns more by recognizing the
patient in both than in two views of one image (MedAug, Vu et al. 2021).
"""

from typing import Final, Literal, NamedTuple

import numpy as np

from infra import rng
from infra.arrays import Bool, Float64, Int64
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet

# Days and their distances have five digits. On one axis for the days of all groups, these keep groups apart.
_DAYS_APART: Final = 10**6
_UNKNOWN_DAY: Final = 5 * 10**5

Same = Literal["study", "patient"]


class DrawnSiblings(NamedTuple):
    """The siblings that the second views of a batch show.

    Attributes:
        items: (m,) places in the batch of the samples whose second view shows a sibling
        positions: positions of the siblings, each array (m,)
    """

    items: Int64
    positions: Positions


def _nothing() -> Int64:
    return np.empty(0, np.int64)


NO_SIBLINGS: Final = DrawnSiblings(_nothing(), Positions(_nothing(), _nothing(), _nothing()))


class Siblings:
    """The siblings of all samples of a shard set: other images of the same study or patient in the same official split.

    A draw depends on (seed, epoch, sample), and on the identities and days of the siblings alone. All images of a
    patient belong to one fraction, and a shard to one split, so neither the fraction and the splits that a run trains
    on nor the order of the shards or the number of processes change a draw.

    Attributes:
        same: what siblings have in common
        has_any: (samples,) whether a sample has a sibling, in packed order
    """

    def __init__(
        self,
        shards: ShardSet,
        same: Same,
        probability: float,
        seed: int,
        days: Float64 | None = None,
        most_days: int = 0,
    ) -> None:
        """Read the indexes of all shards; those of remote shards are downloaded to the cache.

        Args:
            shards: the samples of the run
            same: what siblings have in common
            probability: with which a sample that has siblings shows one
            seed: seed of the draws
            days: (samples,) day of each sample in packed order, NaN if unknown; a sample of an unknown day has no
                sibling. Without them, all images of a study or patient are siblings
            most_days: largest number of days between siblings

        Raises:
            UserError: if an index does not match the manifest
            RunFailed: if an index cannot be downloaded
        """
        self.same = same
        self._shards, self._probability, self._seed = shards, probability, seed
        self._first = np.cumsum([0, *shards.shard_samples[:-1]])  # number of each shard's first sample
        rows = shards.whole_index()
        self._samples = rows["sample"].copy()
        splits = np.repeat([str(shard.split) for shard in shards.shards], shards.shard_samples)
        is_known, day = self._days(days)
        order = np.lexsort((self._samples, day, splits, rows[same]))  # by group, in it by day, and then by identity
        group, split, sample = rows[same][order], splits[order], self._samples[order]
        begins = np.append(True, (group[1:] != group[:-1]) | (split[1:] != split[:-1]))
        # Two folders may hold the same sample, which is no sibling of itself.
        is_first = begins | np.append(True, sample[1:] != sample[:-1])
        # Siblings are a range of members: those of one group, and of days that are close enough.
        axis = np.cumsum(begins) * _DAYS_APART + day[order]
        of_members = axis[is_first]
        starts = np.searchsorted(of_members, axis - most_days)
        sizes = np.searchsorted(of_members, axis + most_days, side="right") - starts
        self._members = order[is_first]
        self._place, self._start, self._size = (np.empty_like(order) for _ in range(3))
        self._place[order] = np.cumsum(is_first) - 1
        self._start[order], self._size[order] = starts, sizes
        self.has_any: Bool = is_known & (self._size > 1)

    def _days(self, days: Float64 | None) -> tuple[Bool, Float64]:
        """Return whether the day of each sample is known, and the days, far from all others where it is not."""
        if days is None:
            return np.ones(len(self._samples), np.bool_), np.zeros(len(self._samples))
        _, first, inverse = np.unique(self._samples, return_index=True, return_inverse=True)
        day = days[first][inverse]  # two folders may hold the same sample; the first one counts
        return ~np.isnan(day), np.nan_to_num(day, nan=_UNKNOWN_DAY)

    def draw(self, positions: Positions) -> DrawnSiblings:
        """Draw which samples of a batch show a sibling, and which one: evenly among all siblings of the sample.

        Args:
            positions: positions of the samples, each array (n,)
        """
        numbers = self._first[positions.shard] + positions.row
        whether, which = rng.uniform(self._seed, "sibling", self._samples[numbers], positions.epoch, 2).T
        items = np.flatnonzero(self.has_any[numbers] & (whether < self._probability))
        numbers = numbers[items]
        start, size = self._start[numbers], self._size[numbers]
        steps = 1 + (which[items] * (size - 1)).astype(np.int64)  # forward from the sample, around the end of its group
        chosen = self._members[start + (self._place[numbers] - start + steps) % size]
        return DrawnSiblings(items, Positions(positions.epoch[items], *self._shards.locate(chosen)))
