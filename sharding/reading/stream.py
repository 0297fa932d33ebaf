"""Encoded images in the sample order, read and downloaded ahead in the background."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from io import BytesIO
from itertools import compress, count
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from infra.arrays import Bool, Int64, Records, UInt8
from infra.errors import RunFailed
from infra.log import say
from infra.parallel.background import read_ahead
from sharding.format.manifest import INDEX_ROW
from sharding.format.sample import SampleMetadata
from sharding.reading.data_config import DataConfig
from sharding.reading.open_shard import OpenShard, SampleDamaged
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.prefetch import Prefetcher, largest_bytes
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import NO_SIBLINGS, DrawnSiblings, Siblings

_READ_AHEAD_BATCHES: Final = 4
_PREFETCH_SAMPLES: Final = 1 << 20  # whose positions are held, 24 bytes each
_BLANK_SIDE_PX: Final = 8


def _blank() -> UInt8:
    content = BytesIO()
    Image.new("L", (_BLANK_SIDE_PX, _BLANK_SIDE_PX), 128).save(content, "JPEG")
    return np.frombuffer(content.getvalue(), np.uint8)


BLANK: Final = _blank()  # a gray JPEG that replaces a damaged sample


class EncodedSiblings(NamedTuple):
    """The siblings that the second views of a batch show.

    Attributes:
        items: (m,) places in the batch of the samples whose second view shows a sibling
        encoded: one encoded image (bytes,) per sibling; BLANK for a damaged one
        rows: (m,) INDEX_ROW of the siblings, with the size of BLANK for a damaged one
    """

    items: Int64
    encoded: list[UInt8]
    rows: Records

    def of(self, samples: Bool) -> "EncodedSiblings":
        """Return the siblings of some samples: (n,) True."""
        kept = samples[self.items]
        return EncodedSiblings(self.items[kept], list(compress(self.encoded, kept)), self.rows[kept])


NO_SIBLING_IMAGES: Final = EncodedSiblings(NO_SIBLINGS.items, [], np.empty(0, INDEX_ROW))


class EncodedBatch(NamedTuple):
    """One rank's part of a step.

    Attributes:
        step: the number of the step
        encoded: one encoded image (bytes,) per sample; BLANK for a damaged one
        rows: (n,) INDEX_ROW; a damaged sample keeps its identities and has the size of BLANK
        epochs: (n,) the epoch that each sample belongs to
        valid: (n,) False for a sample that is damaged, or whose sibling is
        siblings: the images of those second views that do not show the sample itself
    """

    step: int
    encoded: list[UInt8]
    rows: Records
    epochs: Int64
    valid: Bool
    siblings: EncodedSiblings = NO_SIBLING_IMAGES

    @property
    def second_rows(self) -> Records:
        """(n,) INDEX_ROW of the images that the second views show."""
        rows = self.rows.copy()
        rows[self.siblings.items] = self.siblings.rows
        return rows


class _Step(NamedTuple):
    """What a step reads."""

    number: int
    positions: Positions
    siblings: DrawnSiblings = NO_SIBLINGS

    @property
    def shards(self) -> list[int]:
        """The numbers of the shards that it needs."""
        return [*self.positions.shard.tolist(), *self.siblings.positions.shard.tolist()]


def sample_order(shards: ShardSet, data: DataConfig, seed: int) -> SampleOrder:
    """Return the order of a run over these shards."""
    return SampleOrder(shards.shard_samples, data.lanes, data.global_batch, data.shuffle_window, seed)


def sample_batches(
    shards: ShardSet,
    order: SampleOrder,
    *,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    local_world: int = 1,
    siblings: Siblings | None = None,
) -> Generator[EncodedBatch, None, None]:
    """Yield a rank's part of every step, endlessly; threads read and download ahead.

    A damaged sample is masked, and a warning names it; so is one whose sibling is damaged. Close the generator to end
    its threads.

    Args:
        shards: the shards to read
        order: the order of their samples
        first_step: the step to begin with
        rank: this rank
        world: the number of ranks
        local_world: the ranks on this machine; their shards must fit the cache together
        siblings: draws other images for second views; they may lie in any shard, so all shards must fit the cache

    Raises:
        UserError: if `world` does not divide the lanes, or the cache is too small
        RunFailed: while iterating, if a shard cannot be opened or downloaded
    """
    order.require_world(world)
    require_room(shards, order, world, local_world, siblings)

    def steps() -> Iterator[_Step]:
        for number in count(first_step):
            positions = order.batch(number, rank, world)
            yield _Step(number, positions, NO_SIBLINGS if siblings is None else siblings.draw(positions))

    at_a_time = len(shards.shards) if siblings else order.shards_at_a_time(order.lanes // world)
    return _batches(shards, steps(), largest_bytes(shards, at_a_time), order.global_batch // world, mask=True)


def require_room(shards: ShardSet, order: SampleOrder, world: int, local_world: int, siblings: Siblings | None) -> None:
    """Raise UserError if the cache is too small for the shards that this machine's lanes read at a time.

    The arguments are those of `sample_batches`.
    """
    if shards.cache is None:
        return
    lanes = order.lanes // world * min(local_world, world)
    if siblings is None:
        count = order.shards_at_a_time(lanes)
        readers = f"{lanes} lanes of this machine read ({count} shards, the present and next ones)"
    else:
        count = len(shards.shards)
        readers = f"second views of siblings read (all {count} shards)"
    shards.cache.require_room(largest_bytes(shards, count), readers)


def packed_batches(
    shards: ShardSet, local_batch: int, numbers: Int64 | None = None
) -> Generator[EncodedBatch, None, None]:
    """Yield samples once, in packed order (epoch 0); the last batch may be smaller.

    Args:
        shards: the samples
        local_batch: samples in a batch
        numbers: (m,) positions of the chosen samples in packed order; all by default

    Raises:
        UserError: if the cache is too small
        RunFailed: while iterating, if a sample is damaged or a shard cannot be opened or downloaded
    """
    budget_bytes = _require_two_shards(shards)
    steps = (_Step(number, positions) for number, positions in enumerate(_packed(shards, local_batch, numbers)))
    return _batches(shards, steps, budget_bytes, local_batch, mask=False)


def packed_metadata(shards: ShardSet) -> Generator[SampleMetadata, None, None]:
    """Yield the metadata of each sample, in packed order; raises like `packed_batches`."""
    with closing(packed_samples(shards)) as samples:
        for shard, row in samples:
            yield shard.metadata(row)


def packed_samples(shards: ShardSet) -> Generator[tuple[OpenShard, int], None, None]:
    """Yield each sample as an open shard and a row, in packed order; raises like `packed_batches`."""
    prefetcher = Prefetcher(shards, _require_two_shards(shards), most_items=len(shards.shards))
    walk = prefetcher.walk(range(len(shards.shards)), lambda shard: [shard])
    with closing(prefetcher), closing(walk):
        for number in walk:
            for row in range(shards.shard_samples[number]):
                yield prefetcher.shard(number), row


def _require_two_shards(shards: ShardSet) -> int:
    """Return the bytes of one reader's present and next shard; raises UserError if the cache is too small for them."""
    needed_bytes = largest_bytes(shards, 2)
    if shards.cache is not None:
        shards.cache.require_room(needed_bytes, "one reader reads (2 shards, the present and next one)")
    return needed_bytes


def _packed(shards: ShardSet, local_batch: int, numbers: Int64 | None) -> Iterator[Positions]:
    numbers = np.arange(shards.samples) if numbers is None else numbers
    for start in range(0, len(numbers), local_batch):
        part = numbers[start : start + local_batch]
        yield Positions(np.zeros_like(part), *shards.locate(part))


def _batches(
    shards: ShardSet, steps: Iterable[_Step], budget_bytes: int, local_batch: int, *, mask: bool
) -> Generator[EncodedBatch, None, None]:
    """Yield the batches of these steps while threads download shards and read samples of later ones."""
    prefetcher = Prefetcher(shards, budget_bytes, most_items=max(8, _PREFETCH_SAMPLES // local_batch))
    walk = prefetcher.walk(steps, lambda step: step.shards)

    def read_batches() -> Iterator[EncodedBatch]:
        with closing(walk):
            for step in walk:
                yield read_batch(prefetcher, step.number, step.positions, step.siblings, mask=mask)

    return read_ahead(read_batches(), _READ_AHEAD_BATCHES, prefetcher.close)


def read_batch(
    shards: ShardSet | Prefetcher,
    step: int,
    positions: Positions,
    siblings: DrawnSiblings = NO_SIBLINGS,
    *,
    mask: bool,
) -> EncodedBatch:
    """Read the samples at these positions.

    Args:
        shards: the shards to read
        step: the number of the step, for messages
        positions: positions of the samples, each array (n,)
        siblings: the images of second views that do not show the sample itself
        mask: whether to mask damaged samples and warn about them, instead of raising

    Raises:
        RunFailed: if a shard cannot be opened, or a sample is damaged and not masked
    """
    encoded, rows, valid = _read(shards, step, positions, "it is masked" if mask else None)
    consequence = "the sample whose second view shows it is masked" if mask else None
    others, other_rows, whole = _read(shards, step, siblings.positions, consequence)
    valid[siblings.items[~whole]] = False
    shown = EncodedSiblings(siblings.items, others, other_rows)
    return EncodedBatch(step, encoded, rows, positions.epoch, valid, shown)


def _read(
    shards: ShardSet | Prefetcher, step: int, positions: Positions, consequence: str | None
) -> tuple[list[UInt8], Records, Bool]:
    """Read images; return them, their rows, and False for each that is damaged and thus BLANK.

    Args:
        shards: the shards to read
        step: the number of the step, for messages
        positions: positions of the images, each array (n,)
        consequence: of a damaged image, for the warning; None raises instead
    """
    encoded: list[UInt8] = []
    rows = np.empty(len(positions.row), INDEX_ROW)
    valid = np.ones(len(positions.row), np.bool_)
    for item, (number, row) in enumerate(zip(positions.shard.tolist(), positions.row.tolist(), strict=True)):
        try:
            shard = shards.shard(number)
        except RunFailed as error:
            raise RunFailed(f"{error}; step {step} needs it") from error
        rows[item] = shard.rows[row]
        try:
            encoded.append(shard.read(row))
        except SampleDamaged as error:
            if consequence is None:
                raise
            say(f"warning: {error}; {consequence} in step {step}")
            encoded.append(BLANK)
            valid[item] = False
    rows["height"][~valid] = rows["width"][~valid] = _BLANK_SIDE_PX
    return encoded, rows, valid
