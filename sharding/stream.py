"""From packed folders to encoded images in the sample order: every byte checked, read ahead in the background."""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from infra.ahead import read_ahead
from infra.errors import RunFailed, UserError, require
from sharding.manifest import NAME, Manifest, Shard, read_index, read_manifest
from sharding.order import Positions, SampleOrder, require_lanes

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

FRACTIONS_PERCENT: Final = (1, 10, 100)
_OPEN_SHARDS: Final = 256  # well below the usual limit of 1024 open files
_READ_AHEAD_BATCHES: Final = 4


@dataclass(frozen=True)
class DataConfig:
    """Which images are trained on, and in what order.

    Args:
        shards: folders that `sternum shard` wrote; several are trained on together.
        splits: official splits to take (none named: all); a data set without official splits is taken whole.
        fraction_percent: the nested share of the patients: 1, 10 or 100.
        global_batch: images a step over all ranks.
        lanes: streams that a batch is taken from; must divide the global batch, and the world size must divide it.
        shuffle_window: images shuffled among each other, over all lanes; a smaller data set is shuffled whole.
    """

    shards: list[Path]
    splits: list[str] = field(default_factory=list)
    fraction_percent: int = 100
    global_batch: int = 256
    lanes: int = 64
    shuffle_window: int = 16384

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        require(len(self.shards) > 0, "data.shards=[] must name a folder of shards; make one: sternum shard --help")
        _require_fraction("data.fraction_percent", self.fraction_percent)
        require_lanes(self.lanes, self.global_batch, self.shuffle_window)


def _require_fraction(name: str, percent: int) -> None:
    require(percent in FRACTIONS_PERCENT, f"{name}={percent} must be one of {FRACTIONS_PERCENT}; try 100")


class EncodedBatch(NamedTuple):
    """One rank's part of a step: encoded images, their INDEX_ROW rows (n,) and their epochs (n,)."""

    step: int
    encoded: list[Bytes]
    rows: npt.NDArray[np.void]
    epochs: Int64


class _OpenShard:
    """An open tar and its index; closes itself when the last user lets go of it."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.rows = read_index(folder, shard)
        self.descriptor = os.open(folder / shard.name, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """The chosen shards of one or several packed folders, as one numbered list; safe to use from several threads.

    Attributes:
        shards: the chosen shards, folder by folder.
        folders: the folder of each.
        shard_samples: samples of each.
        samples: of all.
        pixel_mean, pixel_std: over all folders, weighted by the samples chosen from each; scale 0 to 1.
        identity: a hash of the chosen shards' contents in their order: what a resumed run must find again.
    """

    def __init__(self, folders: Sequence[Path], splits: Sequence[str] = (), fraction_percent: int = 100) -> None:
        """Read the manifests and check that every chosen shard is there in its full size.

        Raises UserError when a folder is no packed dataset, lacks a split, is named twice or does not match its
        manifest.
        """
        _require_fraction("fraction_percent", fraction_percent)
        folders = [Path(folder) for folder in folders]
        for folder in folders:
            same = [other for other in folders if other.resolve() == folder.resolve()]
            require(len(same) == 1, f"shards name {folder} {len(same)} times; name each folder once")
        manifests = [read_manifest(folder) for folder in folders]
        _require_splits(manifests, splits)
        self._places: list[tuple[Path, Shard]] = []
        parts: list[tuple[int, Manifest]] = []
        for folder, manifest in zip(folders, manifests, strict=True):
            chosen = manifest.select([split for split in splits if split in _splits(manifest)], fraction_percent)
            self._places += [(folder, shard) for shard in chosen]
            parts.append((sum(shard.samples for shard in chosen), manifest))
        for folder, shard in self._places:
            _require_size(folder, shard)
        self.shards = [shard for _, shard in self._places]
        self.folders = [folder for folder, _ in self._places]
        self.shard_samples = [shard.samples for shard in self.shards]
        self.samples = sum(self.shard_samples)
        self.pixel_mean, self.pixel_std = _mix_pixels(parts)
        self.identity = sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def locate(self, numbers: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return shard and row of samples by their numbers in packed order, both of the shape of `numbers`."""
        ends = np.cumsum(self.shard_samples)
        shard = np.searchsorted(ends, numbers, side="right")
        return shard, numbers - ends[shard] + np.asarray(self.shard_samples)[shard]

    def rows(self, positions: Positions) -> npt.NDArray[np.void]:
        """Return the INDEX_ROW rows (n,) of these positions."""
        places = zip(positions.shard.tolist(), positions.row.tolist(), strict=True)
        return np.stack([self._shard(shard).rows[row] for shard, row in places])

    def index(self, shard: int) -> npt.NDArray[np.void]:
        """Return all INDEX_ROW rows of a shard (samples,)."""
        return self._shard(shard).rows

    def read(self, shard: int, row: int) -> Bytes:
        """Return the encoded image of a sample; raises RunFailed when its bytes are not those that were packed."""
        index = self._shard(shard).rows[row]
        return self._read(shard, row, int(index["image_offset"]), int(index["image_bytes"]), int(index["image_crc32"]))

    def metadata(self, shard: int, row: int) -> dict[str, Any]:
        """Return what the dataset says of a sample (patient, split, labels, ...); raises RunFailed as `read`."""
        index = self._shard(shard).rows[row]
        content = self._read(shard, row, int(index["meta_offset"]), int(index["meta_bytes"]), int(index["meta_crc32"]))
        values: dict[str, Any] = msgspec.json.decode(content.tobytes())
        return values

    def key(self, shard: int, row: int) -> str:
        """Return the key of a sample: the name of its members in the tar; raises RunFailed as `read`."""
        opened = self._shard(shard)
        header = os.pread(opened.descriptor, BLOCKSIZE, int(opened.rows[row]["image_offset"]) - BLOCKSIZE)
        try:
            return Path(TarInfo.frombuf(header, "utf-8", "strict").name).stem
        except HeaderError as error:
            raise RunFailed(f"{self._name(shard, row)} has a damaged tar header: {error}") from error

    def _read(self, shard: int, row: int, offset: int, size_bytes: int, crc32: int) -> Bytes:
        content = np.empty(size_bytes, np.uint8)
        try:
            count = os.preadv(self._shard(shard).descriptor, [content.data], offset)
        except OSError as error:
            raise RunFailed(f"{self._name(shard, row)} cannot be read: {error.strerror}") from error
        if count != size_bytes or zlib.crc32(content.data) != crc32:
            raise RunFailed(
                f"{self._name(shard, row)} does not match its checksum; "
                f"see what else differs: sternum verify {self._places[shard][0]}"
            )
        return content

    def _name(self, shard: int, row: int) -> str:
        folder, entry = self._places[shard]
        return f"sample {row} of {folder / entry.name}"

    def _shard(self, shard: int) -> _OpenShard:
        with self._lock:
            opened = self._open.get(shard)
            if opened is None:
                folder, entry = self._places[shard]
                try:
                    opened = self._open[shard] = _OpenShard(folder, entry)
                except OSError as error:
                    raise RunFailed(f"{folder / entry.name} cannot be opened: {error.strerror}") from error
            self._open.move_to_end(shard)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            return opened


def _splits(manifest: Manifest) -> set[str | None]:
    return {shard.split for shard in manifest.shards}


def _require_splits(manifests: Sequence[Manifest], splits: Sequence[str]) -> None:
    """Let every folder that has official splits have one of these, and every one of these be in a folder."""
    for manifest in manifests:
        if splits and _splits(manifest) != {None} and not _splits(manifest) & set(splits):
            manifest.select(splits)  # raises, naming what there is
    for split in splits:
        if not any(split in _splits(manifest) for manifest in manifests):
            manifests[0].select([split])


def _require_size(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}, which {NAME} lists, cannot be read: {error.strerror}; pack the dataset again"
        ) from error
    if size_bytes != shard.size_bytes:
        raise UserError(f"{path} has {size_bytes} bytes, {NAME} says {shard.size_bytes}; pack the dataset again")


def _mix_pixels(parts: Sequence[tuple[int, Manifest]]) -> tuple[float, float]:
    """Return mean and standard deviation of the mixture, each folder weighted by its chosen samples."""
    samples = sum(count for count, _ in parts)
    mean = sum(count * manifest.pixel_mean for count, manifest in parts) / samples
    square = sum(count * (manifest.pixel_std**2 + manifest.pixel_mean**2) for count, manifest in parts) / samples
    return mean, float(max(square - mean**2, 0.0) ** 0.5)


def sample_order(shards: ShardSet, data: DataConfig, seed: int) -> SampleOrder:
    """Return the order of a run over these shards."""
    return SampleOrder(shards.shard_samples, data.lanes, data.global_batch, data.shuffle_window, seed)


def sample_batches(
    shards: ShardSet, order: SampleOrder, *, first_step: int = 0, rank: int = 0, world: int = 1
) -> Generator[EncodedBatch, None, None]:
    """Yield a rank's part of every step from `first_step` on, without end; a thread reads a few batches ahead.

    Raises RunFailed when a sample's bytes are not those that were packed. Close the generator to end its thread.
    """
    order.require_world(world)
    return read_ahead(_ordered(shards, order, first_step, rank, world), _READ_AHEAD_BATCHES)


def _ordered(shards: ShardSet, order: SampleOrder, first_step: int, rank: int, world: int) -> Iterator[EncodedBatch]:
    step = first_step
    while True:
        yield _batch(shards, step, order.batch(step, rank, world))
        step += 1


def packed_batches(shards: ShardSet, local_batch: int) -> Generator[EncodedBatch, None, None]:
    """Yield every sample once, in the order in which it is packed (epoch 0); the last batch may be smaller."""
    return read_ahead(_packed(shards, local_batch), _READ_AHEAD_BATCHES)


def _packed(shards: ShardSet, local_batch: int) -> Iterator[EncodedBatch]:
    for step, start in enumerate(range(0, shards.samples, local_batch)):
        places = np.arange(start, min(start + local_batch, shards.samples))
        yield _batch(shards, step, Positions(np.zeros_like(places), *shards.locate(places)))


def _batch(shards: ShardSet, step: int, positions: Positions) -> EncodedBatch:
    places = zip(positions.shard.tolist(), positions.row.tolist(), strict=True)
    return EncodedBatch(step, [shards.read(*place) for place in places], shards.rows(positions), positions.epoch)
