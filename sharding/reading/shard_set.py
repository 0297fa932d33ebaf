"""The shards that a run reads, wherever they are, as one numbered list: every byte of a sample is checked."""

import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from infra.errors import RunFailed
from sharding.format.manifest import INDEX_ROW, Manifest, decode_index, index_bytes, read_index, require_fitting
from sharding.reading.cache import CacheFull, FetchConfig, FileSpec, PinnedFile, ShardCache
from sharding.reading.location import LocalFolder, Location, ShardFolder, open_location
from sharding.reading.manifests import fetch_manifest, read_manifest
from sharding.reading.order import Positions
from sharding.reading.selection import choose_shards

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

_OPEN_SHARDS: Final = 256  # well below the usual limit of 1024 open files
_POLL_S: Final = 0.1


class StreamStats(NamedTuple):
    """What has been fetched so far. cache_hits: shards that were in the cache; retries: attempts after the first."""

    bytes_fetched: int = 0
    shards_fetched: int = 0
    cache_hits: int = 0
    retries: int = 0


class SampleDamaged(RunFailed):
    """The bytes of a sample are not those that were packed, or cannot be read."""


class OpenShard:
    """An open tar and its index; closes itself when the last user lets go of it."""

    def __init__(self, rows: npt.NDArray[np.void], tar: Path | PinnedFile) -> None:
        self.rows = rows
        self._held = tar if isinstance(tar, PinnedFile) else None
        self.descriptor = tar.descriptor if isinstance(tar, PinnedFile) else os.open(tar, os.O_RDONLY)

    def __del__(self) -> None:
        if self._held is None and hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """The chosen shards of one or several packed folders, as one numbered list; safe to use from several threads.

    Local folders are read in place, shards from elsewhere in the cache.

    Attributes:
        shards: the chosen shards, folder by folder.
        folders: the folder of each, as it was given.
        shard_samples: samples of each.
        samples: of all.
        pixel_mean, pixel_std: over all folders, weighted by the samples chosen from each; scale 0 to 1.
        identity: a hash of the chosen shards' contents in their order: what a resumed run must find again. It does not
            depend on where they are.
        cache: what holds shards from elsewhere; None when all are local.
        fetch: how such shards are fetched, as it was given.
    """

    def __init__(
        self,
        places: Sequence[Location],
        splits: Sequence[str] = (),
        fraction_percent: int = 100,
        fetch: FetchConfig | None = None,
    ) -> None:
        """Read the manifests and check that every chosen local shard is there in its full size.

        Raises UserError when a place is no packed dataset, lacks a split, is named twice or does not match its
        manifest, and RunFailed when a manifest cannot be fetched.
        """
        sources = [open_location(place) for place in places]
        is_local = all(isinstance(found, LocalFolder) for found in sources)
        self.fetch = fetch
        self.cache = None if is_local else ShardCache(fetch or FetchConfig())
        chosen = choose_shards(sources, [self._manifest(found) for found in sources], splits, fraction_percent)
        self._places = chosen.places
        self.shards = [shard for _, shard in chosen.places]
        self.folders: list[Location] = [
            place for place, count in zip(places, chosen.counts, strict=True) for _ in range(count)
        ]
        self.shard_samples = [shard.samples for shard in self.shards]
        self.samples = sum(self.shard_samples)
        self.pixel_mean, self.pixel_std = chosen.pixel_mean, chosen.pixel_std
        self.identity = sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._coming: dict[int, Future[OpenShard]] = {}
        self._shards_fetched = self._cache_hits = 0
        self._lock = threading.Lock()

    def locate(self, numbers: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return shard and row of samples by their numbers in packed order, both of the shape of `numbers`."""
        ends = np.cumsum(self.shard_samples)
        shard = np.searchsorted(ends, numbers, side="right")
        return shard, numbers - ends[shard] + np.asarray(self.shard_samples)[shard]

    def rows(self, positions: Positions) -> npt.NDArray[np.void]:
        """Return the INDEX_ROW rows (n,) of these positions."""
        rows = np.empty(len(positions.row), INDEX_ROW)  # np.stack of structured rows takes 30 times as long
        for place, (shard, row) in enumerate(zip(positions.shard.tolist(), positions.row.tolist(), strict=True)):
            rows[place] = self.row(shard, row)
        return rows

    def row(self, shard: int, row: int) -> np.void:
        """Return the INDEX_ROW row of a sample."""
        found: np.void = self._shard(shard).rows[row]
        return found

    def index(self, shard: int) -> npt.NDArray[np.void]:
        """Return all INDEX_ROW rows of a shard (samples,), without fetching the shard."""
        with self._lock:
            opened = self._open.get(shard)
        return opened.rows if opened else self._read_index(shard, None)

    def read(self, shard: int, row: int) -> Bytes:
        """Return the encoded image of a sample; raises SampleDamaged when its bytes are not those that were packed."""
        index = self._shard(shard).rows[row]
        return self._read(shard, row, int(index["image_offset"]), int(index["image_bytes"]), int(index["image_crc32"]))

    def metadata(self, shard: int, row: int) -> dict[str, Any]:
        """Return what the dataset says of a sample (patient, split, labels, ...); raises SampleDamaged as `read`."""
        index = self._shard(shard).rows[row]
        content = self._read(shard, row, int(index["meta_offset"]), int(index["meta_bytes"]), int(index["meta_crc32"]))
        values: dict[str, Any] = msgspec.json.decode(content.tobytes())
        return values

    def key(self, shard: int, row: int) -> str:
        """Return the key of a sample: the name of its members in the tar; raises SampleDamaged as `read`."""
        opened = self._shard(shard)
        header = os.pread(opened.descriptor, BLOCKSIZE, int(opened.rows[row]["image_offset"]) - BLOCKSIZE)
        try:
            return Path(TarInfo.frombuf(header, "utf-8", "strict").name).stem
        except HeaderError as error:
            raise SampleDamaged(f"{self._sample(shard, row)} has a damaged tar header: {error}") from error

    def stats(self) -> StreamStats:
        """Return what has been fetched so far through this object."""
        if self.cache is None:
            return StreamStats()
        fetcher = self.cache.fetcher
        return StreamStats(fetcher.bytes_fetched, self._shards_fetched, self._cache_hits, fetcher.retries)

    def is_remote(self, shard: int) -> bool:
        """Say whether a shard has to be fetched."""
        return not isinstance(self._places[shard][0], LocalFolder)

    def open(self, shard: int, stop: threading.Event | None = None) -> OpenShard:
        """Open a shard, fetched if need be; raises RunFailed when it cannot be had or `stop` is set."""
        place, entry = self._places[shard]
        try:
            rows = self._read_index(shard, stop)
            if isinstance(place, LocalFolder):
                return OpenShard(rows, place.path / entry.name)
            assert self.cache is not None, "what is not local has a cache"
            held = self.cache.open(place, FileSpec(entry.name, entry.sha256, entry.size_bytes), stop)
        except OSError as error:
            raise RunFailed(f"{self.name(shard)} cannot be opened: {error.strerror}") from error
        with self._lock:
            self._cache_hits += held.was_here
            self._shards_fetched += not held.was_here
        return OpenShard(rows, held)

    def expect(self, shard: int, coming: Future[OpenShard]) -> None:
        """Take a shard that somebody opens in the background as soon as it is needed."""
        with self._lock:
            self._coming[shard] = coming

    def let_go(self, shard: int) -> None:
        """Close a shard that is not needed for now."""
        with self._lock:
            self._coming.pop(shard, None)
            self._open.pop(shard, None)

    def name(self, shard: int) -> str:
        """Return where a shard is, for messages."""
        place, entry = self._places[shard]
        return str(place.path / entry.name) if isinstance(place, LocalFolder) else f"{place.name}/{entry.name}"

    def _sample(self, shard: int, row: int) -> str:
        return f"sample {row} of {self.name(shard)}"

    def _manifest(self, found: ShardFolder) -> Manifest:
        if self.cache is None or isinstance(found, LocalFolder):
            return read_manifest(found.path if isinstance(found, LocalFolder) else found.name)
        return fetch_manifest(found, self.cache.fetcher)

    def _read(self, shard: int, row: int, offset: int, size_bytes: int, crc32: int) -> Bytes:
        content = np.empty(size_bytes, np.uint8)
        try:
            count = os.preadv(self._shard(shard).descriptor, [content.data], offset)
        except OSError as error:
            raise SampleDamaged(f"{self._sample(shard, row)} cannot be read: {error.strerror}") from error
        if count != size_bytes or zlib.crc32(content.data) != crc32:
            raise SampleDamaged(f"{self._sample(shard, row)} does not match its checksum; {self._way_out(shard)}")
        return content

    def _way_out(self, shard: int) -> str:
        place, entry = self._places[shard]
        if isinstance(place, LocalFolder) or self.cache is None:
            return f"see what else differs: sternum verify {place.name}"
        return f"remove {self.cache.folder / entry.sha256} to have it fetched again"

    def _read_index(self, shard: int, stop: threading.Event | None) -> npt.NDArray[np.void]:
        """Read a shard's index, by its sha256, and hold it against the shard."""
        place, entry = self._places[shard]
        if isinstance(place, LocalFolder):
            rows = read_index(place.path, entry)
            require_fitting(rows, entry, str(place.path / entry.index_name))
            return rows
        assert self.cache is not None, "what is not local has a cache"
        wanted = FileSpec(entry.index_name, entry.index_sha256, index_bytes(entry), is_exact=False)
        held = self.cache.open(
            place, wanted, stop, lambda descriptor: sha256(_content(descriptor)).hexdigest() == entry.index_sha256
        )
        rows = decode_index(_content(held.descriptor), f"{place.name}/{entry.index_name}")
        require_fitting(rows, entry, f"{place.name}/{entry.index_name}")
        return rows

    def _shard(self, shard: int) -> OpenShard:
        with self._lock:
            opened, coming = self._open.get(shard), self._coming.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
                return opened
        if coming is not None:
            with suppress(CacheFull):
                return coming.result()
        opened = self._open_when_there_is_room(shard)
        with self._lock:
            self._open[shard] = opened
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def _open_when_there_is_room(self, shard: int) -> OpenShard:
        """Open a shard; in a full cache, let go of all others until there is room for this one."""
        deadline_s: float | None = None
        while True:
            try:
                return self.open(shard)
            except CacheFull:
                assert self.cache is not None, "what is full is there"
                deadline_s = deadline_s or time.monotonic() + self.cache.fetcher.config.total_s
                if time.monotonic() > deadline_s:
                    raise
            for other in [*self._coming, *self._open]:
                self.let_go(other)
            time.sleep(_POLL_S)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
