"""From shards, wherever they are, to encoded images in the sample order, read and fetched ahead in the background."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.background import Background, read_ahead
from infra.errors import RunFailed, require
from infra.log import say
from sharding.format.manifest import INDEX_ROW
from sharding.reading.cache import FetchConfig
from sharding.reading.order import Positions, SampleOrder, require_lanes
from sharding.reading.prefetch import largest_bytes, prefetched
from sharding.reading.selection import require_fraction
from sharding.reading.shard_set import Bytes, Int64, SampleDamaged, ShardSet, StreamStats

__all__ = [
    "BLANK",
    "Bytes",
    "DataConfig",
    "EncodedBatch",
    "FetchConfig",
    "Int64",
    "ShardSet",
    "StreamStats",
    "packed_batches",
    "packed_metadata",
    "read_batch",
    "sample_batches",
    "sample_order",
]

_READ_AHEAD_BATCHES: Final = 4
_FETCH_AHEAD_SAMPLES: Final = 1 << 20  # whose positions are held, 24 bytes each
_BLANK_SIDE_PX: Final = 8


def _blank() -> Bytes:
    content = BytesIO()
    Image.new("L", (_BLANK_SIDE_PX, _BLANK_SIDE_PX), 128).save(content, "JPEG")
    return np.frombuffer(content.getvalue(), np.uint8)


BLANK: Final = _blank()  # a gray JPEG in the place of a sample that is damaged


@dataclass(frozen=True)
class DataConfig:
    """Which images are trained on, and in what order.

    Args:
        shards: folders that `sternum shard` wrote, or URLs of such (http, https, s3, gs); trained on together.
        splits: official splits to take (none named: all); a data set without official splits is taken whole.
        fraction_percent: the nested share of the patients: 1, 10 or 100.
        global_batch: images a step over all ranks.
        lanes: streams that a batch is taken from; must divide the global batch, and the world size must divide it.
        shuffle_window: images shuffled among each other, over all lanes; a smaller data set is shuffled whole.
        max_masked_percent: the largest share of an epoch's samples that may be damaged before the run stops.
        fetch: how shards that are not on this machine are fetched and kept.
    """

    shards: list[str]
    splits: list[str] = field(default_factory=list)
    fraction_percent: int = 100
    global_batch: int = 256
    lanes: int = 64
    shuffle_window: int = 16384
    max_masked_percent: float = 0.1
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        require(len(self.shards) > 0, "data.shards=[] must name a folder of shards; make one: sternum shard --help")
        require_fraction("data.fraction_percent", self.fraction_percent)
        require_lanes(self.lanes, self.global_batch, self.shuffle_window)
        require(
            0 <= self.max_masked_percent <= 100,
            f"data.max_masked_percent={self.max_masked_percent} must be 0 to 100; try 0.1",
        )


class EncodedBatch(NamedTuple):
    """One rank's part of a step: encoded images, their INDEX_ROW rows (n,), their epochs (n,), their validity (n,).

    An image that is not valid is BLANK, and its row has the identities of the sample and the size of BLANK.
    """

    step: int
    encoded: list[Bytes]
    rows: npt.NDArray[np.void]
    epochs: Int64
    valid: npt.NDArray[np.bool_]


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
) -> Generator[EncodedBatch, None, None]:
    """Yield a rank's part of every step from `first_step` on, without end; threads read and fetch ahead.

    A sample whose bytes are not those that were packed is masked and named in a line. local_world: how many of the
    ranks share this machine, for the check that their shards fit the cache; raises UserError when they do not. Raises
    RunFailed when a shard cannot be had. Close the generator to end its threads.
    """
    order.require_world(world)
    lanes = order.lanes // world
    if shards.cache is not None:
        node_lanes = lanes * min(local_world, world)
        node_shards = order.shards_at_a_time(node_lanes)
        what = f"{node_lanes} lanes of this machine read ({node_shards} shards, the present and next ones)"
        shards.cache.require_room(largest_bytes(shards, node_shards), what)
    steps = ((step, order.batch(step, rank, world)) for step in count(first_step))
    return _batches(
        shards,
        steps,
        budget_bytes=largest_bytes(shards, order.shards_at_a_time(lanes)),
        most_steps=max(8, _FETCH_AHEAD_SAMPLES // (order.global_batch // world)),
        mask=True,
    )


def packed_batches(shards: ShardSet, local_batch: int) -> Generator[EncodedBatch, None, None]:
    """Yield every sample once, in the order in which it is packed (epoch 0); the last batch may be smaller.

    Raises RunFailed when a sample's bytes are not those that were packed, besides what `sample_batches` raises.
    """
    budget_bytes = _require_two(shards)
    steps = enumerate(_packed(shards, local_batch))
    most_steps = max(8, _FETCH_AHEAD_SAMPLES // local_batch)
    return _batches(shards, steps, budget_bytes=budget_bytes, most_steps=most_steps, mask=False)


def packed_metadata(shards: ShardSet) -> Generator[dict[str, Any], None, None]:
    """Yield what the dataset says of each sample, in the order in which it is packed; raises as `packed_batches`."""
    with closing(Background(_connections(shards), "fetch")) as background:
        walked = prefetched(
            shards,
            range(len(shards.shards)),
            lambda shard: [shard],
            budget_bytes=_require_two(shards),
            most_items=len(shards.shards),
            background=background,
        )
        with closing(walked):
            for shard in walked:
                for row in range(shards.shard_samples[shard]):
                    yield shards.metadata(shard, row)


def _require_two(shards: ShardSet) -> int:
    """Return the bytes of one reader's present and next shard; raises UserError when the cache is too small."""
    needed_bytes = largest_bytes(shards, 2)
    if shards.cache is not None:
        shards.cache.require_room(needed_bytes, "one reader reads (2 shards, the present and next one)")
    return needed_bytes


def _connections(shards: ShardSet) -> int:
    return shards.cache.fetcher.config.connections if shards.cache else 0


def _packed(shards: ShardSet, local_batch: int) -> Iterator[Positions]:
    for start in range(0, shards.samples, local_batch):
        places = np.arange(start, min(start + local_batch, shards.samples))
        yield Positions(np.zeros_like(places), *shards.locate(places))


def _batches(
    shards: ShardSet, steps: Iterable[tuple[int, Positions]], *, budget_bytes: int, most_steps: int, mask: bool
) -> Generator[EncodedBatch, None, None]:
    """Yield the batches of these steps while threads fetch the shards and read the samples of later ones."""
    background = Background(_connections(shards), "fetch")
    walked = prefetched(
        shards,
        steps,
        lambda step: step[1].shard.tolist(),
        budget_bytes=budget_bytes,
        most_items=most_steps,
        background=background,
    )

    def made() -> Iterator[EncodedBatch]:
        with closing(walked):
            for step in walked:
                yield read_batch(shards, *step, mask=mask)

    return read_ahead(made(), _READ_AHEAD_BATCHES, background.close)


def read_batch(shards: ShardSet, step: int, positions: Positions, *, mask: bool) -> EncodedBatch:
    """Read the samples at these positions; those that are damaged are masked and named, or raise RunFailed."""
    encoded: list[Bytes] = []
    rows = np.empty(len(positions.row), INDEX_ROW)
    valid = np.ones(len(positions.row), np.bool_)
    try:
        for place, (shard, row) in enumerate(zip(positions.shard.tolist(), positions.row.tolist(), strict=True)):
            rows[place] = shards.row(shard, row)
            try:
                encoded.append(shards.read(shard, row))
            except SampleDamaged as error:
                if not mask:
                    raise
                say(f"warning: {error}; it is masked in step {step}")
                encoded.append(BLANK)
                valid[place] = False
    except SampleDamaged:
        raise
    except RunFailed as error:
        raise RunFailed(f"{error}; it is needed in step {step}") from error
    rows["height"][~valid] = rows["width"][~valid] = _BLANK_SIDE_PX
    return EncodedBatch(step, encoded, rows, positions.epoch, valid)
