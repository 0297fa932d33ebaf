"""The order of samples in training: a pure function of (shard sizes, seed, step), the same for every world size.

The samples of all epochs form one endless sequence, dealt to L lanes in turn: with n samples in an epoch, the sample
with global number g belongs to epoch g // n and to lane g % L. So a lane runs on into its next epoch without padding
or drops, the lanes of an epoch differ by at most one sample, and the longer ones rotate from epoch to epoch. Within
an epoch, a lane's samples are neighbors on disk: the shards are laid end to end in a seeded order, rotated by an
offset, and cut into L segments. A lane reads its segment forward and shuffles it in windows. A rank owns a block of
lanes, so a machine reads only its own part of the shards.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from infra import rng
from infra.arrays import Int64
from infra.configuration.options import key
from infra.errors import UserError, require
from sharding.reading.data_config import DataConfig, nearest_divisors, require_lanes

_CACHED_EPOCHS: Final = 2  # a batch touches at most two epochs, since an epoch holds at least one batch


class Positions(NamedTuple):
    """The positions of a batch's samples, each array (local_batch,).

    Attributes:
        epoch: the epoch that each sample belongs to
        shard: the number of its shard
        row: its row in the shard's index
    """

    epoch: Int64
    shard: Int64
    row: Int64


class _EpochPlan(NamedTuple):
    """The layout of one epoch."""

    shards: Int64  # (shards,) in their seeded order
    ends: Int64  # (shards,) samples up to the end of each
    offset: int  # of the rotation, in samples
    lane_starts: Int64  # (lanes,)
    lane_lengths: Int64  # (lanes,)


class SampleOrder:
    """The samples of every step, at random access.

    Every sample comes exactly once per epoch. Step t consumes the global numbers [t * global_batch,
    (t + 1) * global_batch), so one integer holds the state of a run, and a batch at the border of two epochs has
    samples of both. A batch is ordered by lane, and rank r's part is the r-th block of lanes: the union over the
    ranks, in rank order, is the same for every world size.

    Memory grows with the shards and the windows in use. If the window holds a whole epoch (samples <= window), the
    epoch is shuffled whole.

    Attributes:
        shard_samples: (shards,) the number of samples in each shard
        samples: the number of samples in an epoch
        lanes: the number of lanes, L
        global_batch: samples per step over all ranks
        seed: the seed of the shuffle
    """

    def __init__(self, shard_samples: npt.ArrayLike, lanes: int, global_batch: int, window: int, seed: int) -> None:
        """Plan an order over shards of these sizes.

        Args:
            shard_samples: (shards,) the number of samples in each shard
            lanes: L; must divide the global batch
            global_batch: samples per step over all ranks
            window: samples shuffled among each other, over all lanes; each lane shuffles window // lanes at a time
            seed: the seed of the shuffle

        Raises:
            UserError: if the lanes do not divide the batch, or one batch takes more samples than there are
        """
        require_lanes(lanes, global_batch, window)
        self.shard_samples = np.asarray(shard_samples, np.int64)
        self.samples = int(self.shard_samples.sum())
        require(
            self.samples >= global_batch,
            f"{key(DataConfig, 'global_batch')}={global_batch} must not exceed the {self.samples} samples of the "
            "shards, or one batch would hold the same image twice; "
            f"try {2 ** max(self.samples, 1).bit_length() // 2}",
        )
        self.lanes, self.global_batch, self.seed = lanes, global_batch, seed
        self._lane_window = max(1, window // lanes)
        self._shuffled_whole = self.samples <= window
        self._plan = lru_cache(_CACHED_EPOCHS)(self._plan_epoch)
        self._whole = lru_cache(_CACHED_EPOCHS)(self._shuffle_epoch)
        self._window = lru_cache(2 * lanes)(self._shuffle_window)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Positions:
        """Return the part of rank `rank` in global batch `step`; raises UserError unless `world` divides the lanes."""
        self.require_world(world)
        share, depth = self.lanes // world, self.global_batch // self.lanes
        lanes = np.repeat(np.arange(rank * share, (rank + 1) * share), depth)  # (local_batch,) lane by lane
        turns = np.tile(np.arange(step * depth, (step + 1) * depth), share)  # the lane's samples before this one
        epochs = (turns * self.lanes + lanes) // self.samples
        shards, rows = np.empty_like(lanes), np.empty_like(lanes)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            offsets = turns[chosen] - self._dealt_before(epoch, lanes[chosen])
            shards[chosen], rows[chosen] = self._locate(epoch, lanes[chosen], offsets)
        return Positions(epochs, shards, rows)

    def require_world(self, world: int) -> None:
        """Raise UserError unless `world` ranks can share the lanes evenly."""
        if self.lanes % world:
            raise UserError(
                f"the world size {world} must divide {key(DataConfig, 'lanes')}={self.lanes}; "
                f"start {nearest_divisors(world, self.lanes)} processes"
            )

    def shards_at_a_time(self, lanes: int) -> int:
        """Return how many shards of usual size `lanes` lanes read at a time: the present and the next one of each lane.

        It is more if a lane's window spans several shards, and all of them if the epoch is shuffled whole.
        """
        if self._shuffled_whole:
            return len(self.shard_samples)
        present = -(-self._lane_window * len(self.shard_samples) // self.samples)
        return min(lanes * (present + 1), len(self.shard_samples))

    def epoch_of(self, step: int) -> int:
        """Return the epoch of the first sample of a step."""
        return step * self.global_batch // self.samples

    def first_step_after_epoch(self, epoch: int) -> int:
        """Return the first step without a sample of `epoch`, which is also the number of steps in epoch + 1 epochs.

        The step before it may hold the first samples of the next epoch, fewer than one batch.
        """
        return -(-(epoch + 1) * self.samples // self.global_batch)

    def _dealt_before(self, epoch: int, lanes: Int64) -> Int64:
        """Count each lane's samples in all epochs before `epoch`: the numbers g < epoch * n with g % L = lane."""
        return -(-(epoch * self.samples - lanes) // self.lanes)

    def _locate(self, epoch: int, lanes: Int64, offsets: Int64) -> tuple[Int64, Int64]:
        """Return (shard, row) of the samples at these offsets in the lanes of an epoch, each (n,)."""
        plan = self._plan(epoch)
        if self._shuffled_whole:
            sequence = self._whole(epoch)[plan.lane_starts[lanes] + offsets]
        else:
            sequence = plan.lane_starts[lanes] + self._shuffle_in_windows(epoch, lanes, offsets)
            sequence = (sequence + plan.offset) % self.samples
        index = np.searchsorted(plan.ends, sequence, side="right")
        shards = plan.shards[index]
        return shards, sequence - plan.ends[index] + self.shard_samples[shards]

    def _shuffle_in_windows(self, epoch: int, lanes: Int64, offsets: Int64) -> Int64:
        """Permute offsets within the windows of their lanes; the last window of a lane may be shorter."""
        lengths = self._plan(epoch).lane_lengths
        shuffled = np.empty_like(offsets)
        windows = offsets // self._lane_window
        # A run has one lane and one window; a batch goes lane by lane, so its runs are contiguous.
        borders = np.flatnonzero((np.diff(lanes) != 0) | (np.diff(windows) != 0)) + 1
        for run in np.split(np.arange(len(offsets)), borders):
            lane, window = int(lanes[run[0]]), int(windows[run[0]])
            start = window * self._lane_window
            size = min(self._lane_window, int(lengths[lane]) - start)
            shuffled[run] = start + self._window(epoch, lane, window, size)[offsets[run] - start]
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
