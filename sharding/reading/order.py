"""The order in which samples are consumed: a pure function of (shard sizes, seed, step), whatever the world size.

The samples of all epochs form one endless sequence that is dealt to L lanes in turn: the sample with global number g
belongs to epoch g // n and to lane g % L. So a lane runs on into its next epoch without padding or drops, the lanes
of an epoch differ by at most one sample, and which of them are longer rotates from epoch to epoch. Within an epoch,
a lane's samples lie next to each other on the disk: the shards, in an order that the seed gives, are laid end to end,
turned by an offset, and cut into L segments. A lane reads its segment forward and shuffles it in windows. A rank owns
a block of lanes, so a machine touches its own part of the shards only.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from infra import rng
from infra.errors import UserError, require

Int64 = npt.NDArray[np.int64]

_CACHED_EPOCHS: Final = 2  # a batch touches two epochs at most, since an epoch holds at least one batch


class Positions(NamedTuple):
    """Where the samples of a batch lie: epoch, shard and row in the shard, each (local_batch,)."""

    epoch: Int64
    shard: Int64
    row: Int64


class _EpochPlan(NamedTuple):
    """One epoch laid out: shards in their order with the end of each, and the start and length of each lane."""

    shards: Int64  # (shards,)
    ends: Int64  # (shards,) samples up to the end of each
    offset: int
    lane_starts: Int64  # (lanes,)
    lane_lengths: Int64  # (lanes,)


def divisors(number: int) -> list[int]:
    """Return the numbers that divide `number`, smallest first."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def require_lanes(lanes: int, global_batch: int, window: int) -> None:
    """Raise UserError unless these three can make an order."""
    require(global_batch >= 1, f"data.global_batch={global_batch} must be 1 or more; try 256")
    require(lanes >= 1, f"data.lanes={lanes} must be 1 or more; try 64")
    require(window >= 1, f"data.shuffle_window={window} must be 1 or more; try 8192")
    if global_batch % lanes:
        raise UserError(
            f"data.lanes={lanes} must divide data.global_batch={global_batch}; try {_near(lanes, global_batch)}"
        )


def _near(value: int, number: int) -> str:
    """Name the divisors of `number` next to `value`, one on each side where there is one."""
    fitting = divisors(number)
    below = [d for d in fitting if d < value][-1:]
    above = [d for d in fitting if d > value][:1]
    return " or ".join(str(d) for d in below + above)


class SampleOrder:
    """Samples by step, at random access.

    Every sample comes exactly once an epoch; step t consumes the global numbers [t * global_batch,
    (t + 1) * global_batch), so a position is one integer and a batch at the border of two epochs holds samples of
    both. A batch is ordered by lane, and rank r's part is its r-th block of lanes: the union over the ranks, in rank
    order, is the same for every world size.

    Memory: the shards and the windows in use. When the whole epoch fits the window (samples <= window), it is
    shuffled whole.
    """

    def __init__(self, shard_samples: npt.ArrayLike, lanes: int, global_batch: int, window: int, seed: int) -> None:
        """Plan over shards of these sizes.

        Args:
            shard_samples: samples of each shard.
            lanes: L, must divide the global batch.
            global_batch: samples a step over all ranks.
            window: samples held for shuffling over all lanes; each lane shuffles window // lanes at a time.
            seed: of the shuffle.

        Raises:
            UserError: lanes do not divide the batch, or there are fewer samples than one batch takes.
        """
        require_lanes(lanes, global_batch, window)
        self.shard_samples = np.asarray(shard_samples, np.int64)
        self.samples = int(self.shard_samples.sum())
        if self.samples < global_batch:
            raise UserError(
                f"data.global_batch={global_batch} must not exceed the {self.samples} samples of the shards, else "
                f"one batch holds the same image twice; try {2 ** max(self.samples, 1).bit_length() // 2}"
            )
        self.lanes, self.global_batch, self.seed = lanes, global_batch, seed
        self._lane_window = max(1, window // lanes)
        self._shuffled_whole = self.samples <= window
        self._plan = lru_cache(_CACHED_EPOCHS)(self._plan_epoch)
        self._whole = lru_cache(_CACHED_EPOCHS)(self._shuffle_epoch)
        self._window = lru_cache(2 * lanes)(self._shuffle_window)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Positions:
        """Return rank `rank`'s part of global batch `step`; raises UserError when `world` does not divide the lanes."""
        self.require_world(world)
        share, depth = self.lanes // world, self.global_batch // self.lanes
        lanes = np.repeat(np.arange(rank * share, (rank + 1) * share), depth)  # (local_batch,) lane by lane
        turns = np.tile(np.arange(step * depth, (step + 1) * depth), share)  # how often the lane was dealt to before
        epochs = (turns * self.lanes + lanes) // self.samples
        shards, rows = np.empty_like(lanes), np.empty_like(lanes)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            places = turns[chosen] - self._dealt_before(epoch, lanes[chosen])
            shards[chosen], rows[chosen] = self._locate(epoch, lanes[chosen], places)
        return Positions(epochs, shards, rows)

    def require_world(self, world: int) -> None:
        """Raise UserError unless `world` ranks can share the lanes evenly."""
        if self.lanes % world:
            fitting = _near(world, self.lanes)
            raise UserError(f"the world size {world} must divide data.lanes={self.lanes}; start {fitting} processes")

    def shards_at_a_time(self, lanes: int) -> int:
        """Return how many shards of usual size `lanes` lanes read at a time: of each, the present and the next.

        More where a lane's window spans several shards; all of them where the epoch is shuffled whole.
        """
        if self._shuffled_whole:
            return len(self.shard_samples)
        present = -(-self._lane_window * len(self.shard_samples) // self.samples)
        return min(lanes * (present + 1), len(self.shard_samples))

    def epoch_of(self, step: int) -> int:
        """Return the epoch of the first sample of a step."""
        return step * self.global_batch // self.samples

    def first_step_after_epoch(self, epoch: int) -> int:
        """Return the first step without a sample of `epoch`, which is also how many steps E = epoch + 1 epochs take.

        The last of these steps may hold the first samples of the next epoch, fewer than one batch.
        """
        return -(-(epoch + 1) * self.samples // self.global_batch)

    def _dealt_before(self, epoch: int, lanes: Int64) -> Int64:
        """Count what each lane was dealt in all epochs before `epoch`: the numbers g < epoch * n with g % L = lane."""
        return -(-(epoch * self.samples - lanes) // self.lanes)

    def _locate(self, epoch: int, lanes: Int64, places: Int64) -> tuple[Int64, Int64]:
        """Turn places in the lanes of an epoch into (shard, row)."""
        plan = self._plan(epoch)
        if self._shuffled_whole:
            sequence = self._whole(epoch)[plan.lane_starts[lanes] + places]
        else:
            sequence = plan.lane_starts[lanes] + self._shuffle_in_windows(epoch, lanes, places)
            sequence = (sequence + plan.offset) % self.samples
        index = np.searchsorted(plan.ends, sequence, side="right")
        shards = plan.shards[index]
        return shards, sequence - plan.ends[index] + self.shard_samples[shards]

    def _shuffle_in_windows(self, epoch: int, lanes: Int64, places: Int64) -> Int64:
        """Permute places within the windows of their lanes; the last window of a lane may be shorter."""
        lengths = self._plan(epoch).lane_lengths
        shuffled = np.empty_like(places)
        windows = places // self._lane_window
        # runs of one lane and one window lie next to each other, since a batch goes lane by lane
        borders = np.flatnonzero((np.diff(lanes) != 0) | (np.diff(windows) != 0)) + 1
        for run in np.split(np.arange(len(places)), borders):
            lane, window = int(lanes[run[0]]), int(windows[run[0]])
            start = window * self._lane_window
            size = min(self._lane_window, int(lengths[lane]) - start)
            shuffled[run] = start + self._window(epoch, lane, window, size)[places[run] - start]
        return shuffled

    def _plan_epoch(self, epoch: int) -> _EpochPlan:
        shards = rng.permutation(len(self.shard_samples), self.seed, "shards", epoch=epoch)
        offset = int(rng.draw_uint64(self.seed, "rotation", np.zeros(1, np.uint64), epoch)[0, 0]) % self.samples
        lanes = np.arange(self.lanes)
        lengths = self._dealt_before(epoch + 1, lanes) - self._dealt_before(epoch, lanes)
        return _EpochPlan(shards, np.cumsum(self.shard_samples[shards]), offset, np.cumsum(lengths) - lengths, lengths)

    def _shuffle_epoch(self, epoch: int) -> Int64:
        return rng.permutation(self.samples, self.seed, "epoch", epoch=epoch)

    def _shuffle_window(self, epoch: int, lane: int, window: int, size: int) -> Int64:
        return rng.permutation(size, self.seed, "window", item=(lane << 40) + window, epoch=epoch)
