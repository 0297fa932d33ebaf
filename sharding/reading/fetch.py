"""Downloads that retry, continue where they broke off, and check what arrived."""

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

from infra.configuration.options import key, require_between, setting
from infra.errors import RunFailed, require
from infra.storage.files import SMALL_BYTES
from sharding.reading.location import FetchFailed, RemoteFolder

T = TypeVar("T")

_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 30.0


@dataclass(frozen=True)
class FetchConfig:
    """Settings for downloading remote shards.

    Args:
        cache_folder: local folder for downloaded shards, shared by all processes of the machine
        limit_gb: size limit of the cache folder in 10^9 bytes; the least recently used shards are removed first
        connections: shards that a process downloads at a time, 1 to 1000
        attempts: failed attempts in a row, without a new byte, after which a download fails, 1 to 1000
        stall_s: seconds without a byte after which an attempt fails
        total_s: seconds after which a download fails, over all attempts
    """

    cache_folder: Path = Path("~/.cache/sternum")
    limit_gb: float = 50.0
    connections: int = 4
    attempts: int = 10
    stall_s: float = 30.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: if a value is out of range
        """
        for name in ("limit_gb", "stall_s", "total_s"):
            hint = f"try {getattr(FetchConfig, name):g}"
            require(0 < getattr(self, name) < 1e9, f"{setting(self, name)} must be positive and below 10^9; {hint}")
        for name in ("connections", "attempts"):
            require_between(self, name, 1, 1000, f"try {getattr(FetchConfig, name)}")


class FileSpec(NamedTuple):
    """A file of a packed folder, described by its content.

    Attributes:
        name: the file's name in the folder
        sha256: SHA-256 of its content
        size_bytes: its size or, unless `is_exact`, an upper bound of its size
        is_exact: whether the size is known
    """

    name: str
    sha256: str
    size_bytes: int
    is_exact: bool = True


class Unavailable(RunFailed):
    """A file cannot be downloaded.

    Attributes:
        is_final: whether the input is wrong, so that a later attempt would fail too
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class PartialDownload:
    """The bytes of a file so far, with their hash.

    Attributes:
        size_bytes: the number of bytes so far
    """

    def __init__(self, file: FileIO) -> None:
        """Continue a file; it may hold the beginning that an earlier process left."""
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
        """Drop all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._hash, self.size_bytes = sha256(), 0

    def is_whole(self, spec: FileSpec) -> bool:
        """Return whether these are the bytes of the file."""
        has_size = self.size_bytes == spec.size_bytes or not spec.is_exact
        return has_size and self._hash.hexdigest() == spec.sha256

    def refuse(self, is_final: bool) -> NoReturn:
        """Raise FetchFailed because these are not the bytes of the file."""
        reason = f"its {self.size_bytes} bytes do not match the sha256 in the manifest"
        raise FetchFailed(reason, from_zero=True, is_final=is_final)


class Fetcher:
    """Downloads files within the attempts and times of its settings; safe to use from several threads.

    Attributes:
        config: the settings
        bytes_fetched: bytes received, including those thrown away
        retries: attempts after the first
    """

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.bytes_fetched = self.retries = 0
        self._lock = threading.Lock()

    def fetch(self, remote: RemoteFolder, spec: FileSpec, part: PartialDownload, stop: threading.Event) -> None:
        """Complete `part`.

        Raises:
            Unavailable: if the file cannot be downloaded, or `stop` is set
        """
        retry = _RetryPolicy(self.config, f"{remote.name}/{spec.name}", stop)
        furthest, is_fresh, wrong = 0, part.size_bytes == 0, 0
        while True:
            try:
                self._continue(remote, spec, part, retry)
                if part.is_whole(spec):
                    return
                wrong += is_fresh  # the leftover of a killed process may be wrong although the remote file is right
                part.refuse(is_final=wrong == 2)
            except FetchFailed as failed:
                if failed.from_zero:
                    part.clear()
                    is_fresh = True
                retry.wait_after(failed, progressed=part.size_bytes > furthest)
                furthest = max(furthest, part.size_bytes)
                with self._lock:
                    self.retries += 1

    def read(self, remote: RemoteFolder, name: str, decode: Callable[[bytes], T]) -> T:
        """Return a file of unknown content and at most SMALL_BYTES, decoded.

        Args:
            remote: the folder
            name: the file's name in the folder
            decode: turns its bytes into the result; raises FetchFailed to have them downloaded again

        Raises:
            Unavailable: if the file cannot be downloaded
        """
        retry = _RetryPolicy(self.config, f"{remote.name}/{name}", threading.Event())
        while True:
            try:
                body = remote.open(name, 0, retry.timeout_s(), retry.left_s())
                content = bytearray()
                with closing(body.chunks):
                    _require_small(body.announced_bytes)
                    for chunk in body.chunks:
                        content += chunk
                        self._count(chunk)
                        _require_small(len(content))
                        retry.timeout_s()
                return decode(bytes(content))
            except FetchFailed as failed:
                retry.wait_after(failed, progressed=False)
                with self._lock:
                    self.retries += 1

    def copy(self, remote: RemoteFolder, name: str, file: FileIO) -> None:
        """Write a remote file to an empty local one, whole by its announced size; raises Unavailable if it cannot."""
        retry = _RetryPolicy(self.config, f"{remote.name}/{name}", threading.Event())
        furthest = 0
        while True:
            try:
                return self._copy_rest(remote, name, file, retry)
            except FetchFailed as failed:
                if failed.from_zero:
                    file.seek(0)
                retry.wait_after(failed, progressed=file.tell() > furthest)
                furthest = max(furthest, file.tell())
                with self._lock:
                    self.retries += 1

    def _copy_rest(self, remote: RemoteFolder, name: str, file: FileIO, retry: "_RetryPolicy") -> None:
        """Add the answer of one request to a file, which holds what came before."""
        body = remote.open(name, file.tell(), retry.timeout_s(), retry.left_s())
        size_bytes = body.start + body.announced_bytes
        with closing(body.chunks):
            file.seek(body.start)  # 0 if the server sends the whole file again
            file.truncate()
            for chunk in body.chunks:
                file.write(chunk)
                self._count(chunk)
                retry.timeout_s()
        if file.tell() < size_bytes:
            raise FetchFailed(f"it ended after {file.tell()} of {size_bytes} bytes")

    def _continue(self, remote: RemoteFolder, spec: FileSpec, part: PartialDownload, retry: "_RetryPolicy") -> None:
        """Add the answer of one request to `part`, up to one byte too many."""
        if (spec.is_exact and part.size_bytes == spec.size_bytes) or part.is_whole(spec):
            return
        body = remote.open(spec.name, part.size_bytes, retry.timeout_s(), retry.left_s())
        with closing(body.chunks):
            if body.start != part.size_bytes:  # the server sends the whole file
                part.clear()
            for chunk in body.chunks:
                self._count(chunk)
                part.add(chunk[: spec.size_bytes + 1 - part.size_bytes])
                if part.size_bytes > spec.size_bytes:
                    return
                retry.timeout_s()
        if part.size_bytes < spec.size_bytes and spec.is_exact:
            raise FetchFailed(f"it ended after {part.size_bytes} of {spec.size_bytes} bytes")

    def _count(self, chunk: bytes) -> None:
        with self._lock:
            self.bytes_fetched += len(chunk)


def _require_small(size_bytes: int) -> None:
    if size_bytes > SMALL_BYTES:
        raise FetchFailed(f"it has more than {SMALL_BYTES >> 20} MiB, too many for such a file", is_final=True)


class _RetryPolicy:
    """The remaining attempts and time of one download.

    Retry libraries count attempts or time; here an attempt that brings new bytes starts the count again, a stall ends
    an attempt early, and all attempts share one deadline.
    """

    def __init__(self, config: FetchConfig, name: str, stop: threading.Event) -> None:
        self._config, self._name, self._stop = config, name, stop
        self._deadline_s = time.monotonic() + config.total_s
        self._failures = 0
        self._last_reason = "no bytes arrived"

    def timeout_s(self) -> float:
        """Return how long to wait for the next byte; raises Unavailable if no time is left."""
        left_s = self.left_s()
        if self._stop.is_set():
            raise Unavailable(f"the download of {self._name} was stopped", is_final=False)
        if left_s <= 0:
            raise self._unavailable(f"{self._last_reason}; {setting(self._config, 'total_s')} is used up")
        return min(self._config.stall_s, left_s)

    def left_s(self) -> float:
        """Return how much time is left."""
        return self._deadline_s - time.monotonic()

    def wait_after(self, failed: FetchFailed, progressed: bool) -> None:
        """Wait before the next attempt; raises Unavailable if no attempt is left.

        The wait is drawn between 0 and a bound that doubles, so that many clients of one server do not return at the
        same time. It is the only draw that need not be repeatable.
        """
        self._last_reason = failed.reason
        self._failures = 1 if progressed else self._failures + 1
        if failed.is_final:
            raise self._unavailable(failed.reason, is_final=True) from failed
        if self._failures >= self._config.attempts:
            raise self._unavailable(f"{failed.reason}; {self._failures} attempts failed in a row") from failed
        wait_s = random.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self._failures))
        if failed.wait_s is not None:
            wait_s += failed.wait_s
            if time.monotonic() + failed.wait_s >= self._deadline_s:
                raise self._unavailable(
                    f"{failed.reason}, and the server asks to wait {failed.wait_s:g} s, "
                    f"longer than {key(FetchConfig, 'total_s')}={self._config.total_s:g} allows"
                ) from failed
        self._stop.wait(min(wait_s, max(0.0, self._deadline_s - time.monotonic())))
        self.timeout_s()

    def _unavailable(self, reason: str, *, is_final: bool = False) -> Unavailable:
        return Unavailable(f"{self._name} cannot be downloaded: {reason}", is_final=is_final)
