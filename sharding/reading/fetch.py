"""A file of a source, whatever goes wrong on the way: asked for again, continued where it broke off, checked."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, TypeVar

from infra.errors import RunFailed, require
from sharding.reading.location import FetchFailed, RemoteFolder

T = TypeVar("T")

_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 30.0


@dataclass(frozen=True)
class FetchConfig:
    """How shards are had that are not on this machine.

    Args:
        cache_folder: local folder of fetched shards, shared by all processes of the machine
        limit_gb: what the cache folder may hold, in 10^9 bytes; what was used longest ago makes room
        connections: shards that a process fetches at a time
        attempts: failures in a row, without a new byte, after which a shard cannot be had
        stall_s: how long nothing may come before an attempt has failed
        total_s: time after which a shard cannot be had
    """

    cache_folder: Path = Path("~/.cache/sternum")
    limit_gb: float = 50.0
    connections: int = 4
    attempts: int = 10
    stall_s: float = 30.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        for name in ("limit_gb", "stall_s", "total_s"):
            value = getattr(self, name)
            require(0 < value < 1e9, f"fetch.{name}={value} must be positive; try {getattr(FetchConfig, name):g}")
        for name in ("connections", "attempts"):
            value = getattr(self, name)
            require(1 <= value <= 1000, f"fetch.{name}={value} must be 1 to 1000; try {getattr(FetchConfig, name)}")


class FileSpec(NamedTuple):
    """A file of a source by its content. size_bytes: what it has or, unless `is_exact`, the most it may have."""

    name: str
    sha256: str
    size_bytes: int
    is_exact: bool = True


class Unavailable(RunFailed):
    """A file cannot be had. is_final: asking later would be of no use; the input is wrong."""

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class PartialDownload:
    """What has come of a file so far, and its hash. file: may hold the beginning from an earlier life."""

    def __init__(self, file: FileIO) -> None:
        self._file, self._hash, self.size_bytes = file, sha256(), 0
        file.seek(0)
        while chunk := file.read(1 << 20):
            self._hash.update(chunk)
            self.size_bytes += len(chunk)

    def add(self, chunk: bytes) -> None:
        """Append bytes."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def clear(self) -> None:
        """Begin anew."""
        self._file.seek(0)
        self._file.truncate()
        self._hash, self.size_bytes = sha256(), 0

    def is_whole(self, wanted: FileSpec) -> bool:
        """Say whether these are the bytes that are wanted."""
        return self._hash.hexdigest() == wanted.sha256

    def refuse(self, is_final: bool) -> NoReturn:
        """Raise FetchFailed: these are other bytes than those that are wanted."""
        reason = f"its {self.size_bytes} bytes are not those that the manifest describes (sha256)"
        raise FetchFailed(reason, from_zero=True, is_final=is_final)


class Fetcher:
    """Fetches files within the attempts and times of a configuration, and counts; safe to use from several threads.

    Attributes:
        bytes_fetched: what came, what was thrown away included.
        retries: attempts after the first.
    """

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.bytes_fetched = self.retries = 0
        self._lock = threading.Lock()

    def fetch(self, remote: RemoteFolder, wanted: FileSpec, part: PartialDownload, stop: threading.Event) -> None:
        """Complete `part`; raises Unavailable, also when `stop` is set."""
        patience = _Patience(self.config, f"{remote.name}/{wanted.name}", stop)
        furthest, is_fresh, wrong = 0, part.size_bytes == 0, 0
        while True:
            try:
                self._continue(remote, wanted, part, patience)
                if part.is_whole(wanted):
                    return
                wrong += is_fresh  # what a killed process left may be wrong without the source being so
                part.refuse(is_final=wrong == 2)
            except FetchFailed as failed:
                if failed.from_zero:
                    part.clear()
                    is_fresh = True
                patience.after(failed, progressed=part.size_bytes > furthest)
                furthest = max(furthest, part.size_bytes)
                with self._lock:
                    self.retries += 1

    def read(self, remote: RemoteFolder, name: str, accept: Callable[[bytes], T]) -> T:
        """Return what `accept` makes of a small file of unknown content; raises Unavailable.

        accept: raises FetchFailed for bytes that it cannot take.
        """
        patience = _Patience(self.config, f"{remote.name}/{name}", threading.Event())
        while True:
            try:
                body = remote.open(name, 0, patience.timeout_s())
                content = bytearray()
                with closing(body.chunks):
                    for chunk in body.chunks:
                        content += chunk
                        self._count(chunk)
                        patience.timeout_s()
                return accept(bytes(content))
            except FetchFailed as failed:
                patience.after(failed, progressed=False)
                with self._lock:
                    self.retries += 1

    def _continue(self, remote: RemoteFolder, wanted: FileSpec, part: PartialDownload, patience: "_Patience") -> None:
        """Add to `part` what one request gives, up to one byte too many."""
        if (part.size_bytes == wanted.size_bytes and wanted.is_exact) or part.is_whole(wanted):
            return
        body = remote.open(wanted.name, part.size_bytes, patience.timeout_s())
        with closing(body.chunks):
            if body.start != part.size_bytes:  # the server does not continue
                part.clear()
            for chunk in body.chunks:
                self._count(chunk)
                part.add(chunk[: wanted.size_bytes + 1 - part.size_bytes])
                if part.size_bytes > wanted.size_bytes:
                    return
                patience.timeout_s()
        if part.size_bytes < wanted.size_bytes and wanted.is_exact:
            raise FetchFailed(f"it ended after {part.size_bytes} of {wanted.size_bytes} bytes")

    def _count(self, chunk: bytes) -> None:
        with self._lock:
            self.bytes_fetched += len(chunk)


class _Patience:
    """What is left of attempts and time for one file."""

    def __init__(self, config: FetchConfig, name: str, stop: threading.Event) -> None:
        self._config, self._name, self._stop = config, name, stop
        self._deadline_s = time.monotonic() + config.total_s
        self._failures = 0
        self._last = "nothing came"

    def timeout_s(self) -> float:
        """Return how long nothing may come from now on; raises Unavailable when there is no time left."""
        left_s = self._deadline_s - time.monotonic()
        if self._stop.is_set():
            raise Unavailable(f"{self._name} is no longer wanted", is_final=False)
        if left_s <= 0:
            raise self._unavailable(f"{self._last}; fetch.total_s={self._config.total_s:g} is used up")
        return min(self._config.stall_s, left_s)

    def after(self, failed: FetchFailed, progressed: bool) -> None:
        """Wait before the next attempt; raises Unavailable when there is to be none.

        The wait is drawn between 0 and a bound that doubles, so that the many who lost one server do not come back
        at one time; it is the only draw that need not be repeatable.
        """
        self._last = failed.reason
        self._failures = 1 if progressed else self._failures + 1
        if failed.is_final:
            raise self._unavailable(failed.reason, is_final=True) from failed
        if self._failures >= self._config.attempts:
            raise self._unavailable(f"{failed.reason}; {self._failures} attempts") from failed
        wait_s = random.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self._failures))
        if failed.wait_s is not None:
            wait_s += failed.wait_s
            if time.monotonic() + failed.wait_s >= self._deadline_s:
                raise self._unavailable(
                    f"{failed.reason}, and the server asks to wait {failed.wait_s:g} s, "
                    f"beyond fetch.total_s={self._config.total_s:g}"
                ) from failed
        self._stop.wait(min(wait_s, max(0.0, self._deadline_s - time.monotonic())))
        self.timeout_s()

    def _unavailable(self, reason: str, *, is_final: bool = False) -> Unavailable:
        return Unavailable(f"{self._name} cannot be had: {reason}", is_final=is_final)
