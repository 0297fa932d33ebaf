"""The shards of a run, local or remote, as one numbered list."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from infra.arrays import Int64, Records, UInt8
from infra.errors import RunFailed
from sharding.format.manifest import (
    INDEX_ROW,
    Manifest,
    decode_fingerprints,
    decode_index,
    fingerprints_bytes,
    index_bytes,
    read_fingerprints,
    read_index,
    require_fitting,
)
from sharding.format.sample import SampleMetadata
from sharding.reading.cache import CacheFull, OpenFile, ShardCache
from sharding.reading.fetch import FetchConfig, FileSpec
from sharding.reading.location import LocalFolder, Location, RemoteFolder, ShardFolder, open_location
from sharding.reading.manifests import fetch_manifest, read_manifest
from sharding.reading.open_shard import OpenShard
from sharding.reading.order import Positions
from sharding.reading.shard_selection import choose_shards

_OPEN_SHARDS: Final = 256  # well below the usual limit of 1024 open files
_POLL_S: Final = 0.1


class StreamStats(NamedTuple):
    """Counts of downloads so far.

    Attributes:
        bytes_fetched: bytes received, including those thrown away
        shards_fetched: shards that were downloaded
        cache_hits: shards that were in the cache already
        retries: attempts after the first
    """

    bytes_fetched: int = 0
    shards_fetched: int = 0
    cache_hits: int = 0
    retries: int = 0


class ShardSet:
    """The chosen shards of one or several packed folders; safe to use from several threads.

    Shards of local folders are read where they are, remote ones from the cache. The most recently read shards stay
    open.

    Attributes:
        shards: the chosen shards, folder by folder
        folders: the location of each shard's folder, as the caller named it
        names: the name of each shard's set
        shard_samples: the number of samples in each shard
        samples: the number of samples in all shards
        pixel_mean: mean over all folders, weighted by the samples chosen from each; scale 0 to 1
        pixel_std: standard deviation, likewise
        identity: a hash of the chosen shards' contents in their order, which a resumed run must find again. It does
            not depend on where the shards are.
        cache: the cache of remote shards; None if all shards are local
        fetch: the settings for downloads, as the caller gave them
    """

    def __init__(
        self,
        locations: Sequence[Location],
        splits: Sequence[str] = (),
        fraction_percent: int = 100,
        fetch: FetchConfig | None = None,
    ) -> None:
        """Read the manifests, and check that every chosen local shard exists in its full size.

        Args:
            locations: packed folders: paths or URLs
            splits: official splits to take; none means all
            fraction_percent: the nested fraction of the patients: 1, 10 or 100
            fetch: settings for downloads; None means the defaults

        Raises:
            UserError: if a location is not a packed dataset, lacks a split, occurs twice or does not match its manifest
            RunFailed: if a manifest cannot be downloaded
        """
        self._arguments = (locations, splits, fraction_percent, fetch)
        folders = [open_location(location) for location in locations]
        is_local = all(isinstance(folder, LocalFolder) for folder in folders)
        self.fetch = fetch
        self.cache = None if is_local else ShardCache(fetch or FetchConfig())
        manifests = [self._manifest(folder) for folder in folders]
        selection = choose_shards(folders, manifests, splits, fraction_percent)
        self._located = selection.shards
        self.shards = [shard for _, shard in selection.shards]
        self.folders: list[Location] = [
            location for location, count in zip(locations, selection.counts, strict=True) for _ in range(count)
        ]
        self.names = [
            manifest.name for manifest, count in zip(manifests, selection.counts, strict=True) for _ in range(count)
        ]
        self.shard_samples = [shard.samples for shard in self.shards]
        self.samples = sum(self.shard_samples)
        self.pixel_mean, self.pixel_std = selection.pixel_mean, selection.pixel_std
        self.identity = sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._shards_fetched = self._cache_hits = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the same shards itself."""
        return type(self), self._arguments

    def locate(self, numbers: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return shard and row of samples by their numbers in packed order, both in the shape of `numbers`."""
        ends = np.cumsum(self.shard_samples)
        shard = np.searchsorted(ends, numbers, side="right")
        return shard, numbers - ends[shard] + np.asarray(self.shard_samples)[shard]

    def rows(self, positions: Positions) -> Records:
        """Return the INDEX_ROW rows (n,) of these positions."""
        rows = np.empty(len(positions.row), INDEX_ROW)  # np.stack of structured rows takes 30 times as long
        for item, (shard, row) in enumerate(zip(positions.shard.tolist(), positions.row.tolist(), strict=True)):
            rows[item] = self.row(shard, row)
        return rows

    def row(self, shard: int, row: int) -> np.void:
        """Return the INDEX_ROW row of a sample."""
        return cast(np.void, self.shard(shard).rows[row])

    def read(self, shard: int, row: int) -> UInt8:
        """Return the encoded image (bytes,) of a sample; raises SampleDamaged if its bytes are not the packed ones."""
        return self.shard(shard).read(row)

    def metadata(self, shard: int, row: int) -> SampleMetadata:
        """Return a sample's metadata; raises SampleDamaged like `read`."""
        return self.shard(shard).metadata(row)

    def key(self, shard: int, row: int) -> str:
        """Return the key of a sample, which is the name of its members in the tar; raises SampleDamaged like `read`."""
        return self.shard(shard).key(row)

    def index(self, shard: int) -> Records:
        """Return all INDEX_ROW rows of a shard (samples,), without downloading the shard itself."""
        with self._lock:
            opened = self._open.get(shard)
        return opened.rows if opened else self._read_index(shard, None)

    def whole_index(self) -> Records:
        """Return the INDEX_ROW rows (samples,) of all shards, in packed order."""
        return np.concatenate([self.index(shard) for shard in range(len(self.shards))])

    def fingerprints(self, shard: int) -> Records | None:
        """Return all FINGERPRINT rows of a shard (samples,) without downloading it; None if it was packed without them.

        Raises:
            UserError: if they do not match the manifest
            RunFailed: if they cannot be downloaded
        """
        folder, entry = self._located[shard]
        if isinstance(folder, LocalFolder):
            return read_fingerprints(folder.path, entry)
        if entry.fingerprints_sha256 is None:
            return None
        spec = FileSpec(entry.fingerprints_name, entry.fingerprints_sha256, fingerprints_bytes(entry), is_exact=False)
        return decode_fingerprints(self._download(folder, spec, None), entry, f"{folder.name}/{spec.name}")

    def stats(self) -> StreamStats:
        """Return the counts of downloads so far through this object."""
        if self.cache is None:
            return StreamStats()
        fetcher = self.cache.fetcher
        return StreamStats(fetcher.bytes_fetched, self._shards_fetched, self._cache_hits, fetcher.retries)

    def is_remote(self, shard: int) -> bool:
        """Return whether a shard must be downloaded."""
        return not isinstance(self._located[shard][0], LocalFolder)

    def name(self, shard: int) -> str:
        """Return the location of a shard, for messages."""
        folder, entry = self._located[shard]
        return str(folder.path / entry.name) if isinstance(folder, LocalFolder) else f"{folder.name}/{entry.name}"

    def shard(self, shard: int) -> OpenShard:
        """Return a shard, opened if it is not open already.

        Raises:
            RunFailed: if it cannot be opened or downloaded
        """
        with self._lock:
            if (opened := self._open.get(shard)) is not None:
                self._open.move_to_end(shard)
                return opened
        opened = self._open_when_there_is_room(shard)
        with self._lock:
            self._open[shard] = opened
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def open(self, shard: int, stop: threading.Event | None = None) -> OpenShard:
        """Open a shard, and download it if needed; the caller keeps it open.

        Raises:
            RunFailed: if it cannot be opened or downloaded, or if `stop` is set
            CacheFull: if the shards in use leave no room in the cache
        """
        folder, entry = self._located[shard]
        try:
            rows = self._read_index(shard, stop)
            if isinstance(folder, LocalFolder):
                path = folder.path / entry.name
                hint = f"see what else differs: sternum verify {folder.name}"
                return OpenShard(rows, OpenFile(path, os.open(path, os.O_RDONLY)), self.name(shard), hint)
            assert self.cache is not None, "a remote shard needs a cache"
            spec = FileSpec(entry.name, entry.sha256, entry.size_bytes)
            file = self.cache.open(folder, spec, stop)
        except OSError as error:
            raise RunFailed(f"{self.name(shard)} cannot be opened: {error.strerror}") from error
        with self._lock:
            self._cache_hits += file.was_cached
            self._shards_fetched += not file.was_cached
        renew = partial(
            self.cache.open, folder, spec, stop, check=True
        )  # no reference to `self`, which would be a cycle
        return OpenShard(rows, file, self.name(shard), "pack the dataset again", renew)

    def release(self, shard: int) -> None:
        """Close a shard as soon as no one is reading it."""
        with self._lock:
            self._open.pop(shard, None)

    def _open_when_there_is_room(self, shard: int) -> OpenShard:
        """Open a shard; if the cache is full, release all others until there is room for this one."""
        deadline_s: float | None = None
        while True:
            try:
                return self.open(shard)
            except CacheFull:
                assert self.cache is not None, "only a cache can be full"
                deadline_s = deadline_s or time.monotonic() + self.cache.fetcher.config.total_s
                if time.monotonic() > deadline_s:
                    raise
            with self._lock:
                self._open.clear()
            time.sleep(_POLL_S)

    def _manifest(self, folder: ShardFolder) -> Manifest:
        if self.cache is None or isinstance(folder, LocalFolder):
            return read_manifest(folder.path if isinstance(folder, LocalFolder) else folder.name)
        return fetch_manifest(folder, self.cache.fetcher)

    def _read_index(self, shard: int, stop: threading.Event | None) -> Records:
        """Read a shard's index, check its sha256, and compare it with the shard."""
        folder, entry = self._located[shard]
        if isinstance(folder, LocalFolder):
            rows = read_index(folder.path, entry)
            require_fitting(rows, entry, str(folder.path / entry.index_name))
            return rows
        spec = FileSpec(entry.index_name, entry.index_sha256, index_bytes(entry), is_exact=False)
        rows = decode_index(self._download(folder, spec, stop), f"{folder.name}/{entry.index_name}")
        require_fitting(rows, entry, f"{folder.name}/{entry.index_name}")
        return rows

    def _download(self, folder: RemoteFolder, spec: FileSpec, stop: threading.Event | None) -> bytes:
        """Return the content of a small remote file, from the cache if it is there."""
        assert self.cache is not None, "a remote shard needs a cache"
        file = self.cache.open(folder, spec, stop, check=True)
        return os.pread(file.descriptor, os.fstat(file.descriptor).st_size, 0)
