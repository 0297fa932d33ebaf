"""A bounded local folder of fetched files, named by the sha256 of their content and shared by all processes.

    SHA256               a whole file; whoever reads it holds a shared flock on it
    SHA256.SIZE.partial  one that is coming; whoever fetches it holds an exclusive flock on it; SIZE is kept free for it
    .lock                held while room is made

The kernel ends a lock with its process, so whatever is not locked is nobody's: the whole file used longest ago makes
room for a new one, a partial one is continued or goes. So the folder holds no more than its limit, deleted files that
somebody reads included. A partial file is never read: it takes its name when its sha256 is right and it is on the disk.
A whole one is afterwards held to its size only, since hashing gigabytes again would cost more than reading them; the
crc32 of each sample is checked whenever it is read.
"""

import errno
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from infra.errors import RunFailed, UserError, require
from infra.files import disk_errors
from sharding.reading.fetch import FetchConfig, Fetcher, FileSpec, PartialDownload, Unavailable
from sharding.reading.location import RemoteFolder

__all__ = ["CacheFull", "FetchConfig", "FileSpec", "PinnedFile", "ShardCache"]

_ENTRY: Final = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.partial)?")
_POLL_S: Final = 0.05


class CacheFull(RunFailed):
    """What is being read and fetched leaves no room."""


class PinnedFile:
    """A whole file of the cache, open for reading: it stays until this is let go of.

    descriptor: of the file. was_here: whether nothing had to be fetched.
    """

    def __init__(self, path: Path, descriptor: int, was_here: bool) -> None:
        self.path, self.descriptor, self.was_here = path, descriptor, was_here

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardCache:
    """Opens files of sources, fetched where they are not here; safe to use from several threads and processes.

    Attributes:
        folder: where they are.
        fetcher: what fetches and counts.
    """

    def __init__(self, config: FetchConfig) -> None:
        """Make the folder; raises UserError when that cannot be done."""
        self.folder = config.cache_folder.expanduser()
        self.fetcher = Fetcher(config)
        self._config = config
        self._limit_bytes = int(config.limit_gb * 1e9)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass

    def require_room(self, needed_bytes: int, what: str) -> None:
        """Raise UserError unless limit and disk leave room for `needed_bytes`, which `what` takes at a time."""
        needed_gb = needed_bytes / 1e9
        require(
            needed_bytes <= self._limit_bytes,
            f"fetch.limit_gb={self._config.limit_gb:g} is less than the {needed_gb:.3g} GB that {what} at a time; "
            f"try fetch.limit_gb={1.5 * needed_gb:.2g}",
        )
        free_bytes = shutil.disk_usage(self.folder).free
        with self._locked():
            used_bytes = sum(status.st_blocks * 512 for _, status in self._entries())
        require(
            needed_bytes <= free_bytes + used_bytes,
            f"{self.folder} has {(free_bytes + used_bytes) / 1e9:.3g} GB for shards, less than the {needed_gb:.3g} GB "
            f"that {what} at a time; choose fetch.cache_folder on a larger disk",
        )

    def open(
        self,
        remote: RemoteFolder,
        wanted: FileSpec,
        stop: threading.Event | None = None,
        accept: Callable[[int], bool] = lambda descriptor: True,
    ) -> PinnedFile:
        """Return a file, fetched if it is not here or `accept` does not like its descriptor.

        Waits while another process fetches it. Raises Unavailable when it cannot be had or `stop` is set, CacheFull
        when there is no room now, and UserError when there can be none.
        """
        require(
            wanted.size_bytes <= self._limit_bytes,
            f"fetch.limit_gb={self._config.limit_gb:g} is less than the {wanted.size_bytes / 1e9:.3g} GB of "
            f"{remote.name}/{wanted.name}; raise it",
        )
        stop = stop or threading.Event()
        deadline_s = time.monotonic() + self._config.total_s
        was_here = True
        while True:
            held = self._find(wanted, was_here)
            if held is not None and accept(held.descriptor):
                return held
            if held is not None:
                self._discard(held)
                del held
            file = self._begin(wanted)
            if file is not None:
                with file:
                    self._fetch(remote, wanted, file, stop)
                was_here = False
            elif stop.wait(_POLL_S) or time.monotonic() > deadline_s:
                raise Unavailable(
                    f"{remote.name}/{wanted.name} cannot be had: another process has been fetching it for "
                    f"fetch.total_s={self._config.total_s:g}",
                    is_final=False,
                )

    def _find(self, wanted: FileSpec, was_here: bool) -> PinnedFile | None:
        """Return the whole file if it is here, marked as just used."""
        path = self.folder / wanted.sha256
        try:
            held = PinnedFile(path, os.open(path, os.O_RDONLY), was_here)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; choose another fetch.cache_folder") from error
        if not _try_lock(held.descriptor, fcntl.LOCK_SH):
            return None  # it is being removed
        status = os.fstat(held.descriptor)
        if status.st_nlink == 0:
            return None
        if status.st_size != wanted.size_bytes and wanted.is_exact:
            self._discard(held)
            return None
        with suppress(OSError):  # another user's: then it is as old as it is
            os.utime(held.descriptor)
        return held

    def _discard(self, held: PinnedFile) -> None:
        """Take the name from a file that turned out to be wrong."""
        with self._locked(), disk_errors(held.path):
            held.path.unlink(missing_ok=True)

    def _begin(self, wanted: FileSpec) -> FileIO | None:
        """Return the partial file, locked and with room for all of it; None when somebody else has it."""
        path = self._partial(wanted)
        with self._locked(), self._full_disk():
            file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
            try:
                if not _try_lock(file.fileno(), fcntl.LOCK_EX):
                    file.close()
                    return None
                if (self.folder / wanted.sha256).exists():  # it has come meanwhile
                    path.unlink()
                    file.close()
                    return None
                self._make_room(wanted.size_bytes, path)
            except BaseException:
                file.close()
                path.unlink(missing_ok=True)
                raise
            return file

    def _fetch(self, remote: RemoteFolder, wanted: FileSpec, file: FileIO, stop: threading.Event) -> None:
        """Complete the partial file and give it its name; what has come stays for the next attempt when that fails."""
        path = self._partial(wanted)
        with self._full_disk(path):
            self.fetcher.fetch(remote, wanted, PartialDownload(file), stop)
            os.fsync(file.fileno())
            with self._locked():
                path.replace(self.folder / wanted.sha256)

    def _make_room(self, needed_bytes: int, keep: Path) -> None:
        """Remove what nobody uses until there is room; `keep` is not counted."""
        entries = [(path, status) for path, status in self._entries() if path != keep]
        used_bytes = sum(_reserved_bytes(path, status) for path, status in entries)
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if used_bytes + needed_bytes <= self._limit_bytes:
                return
            if _remove_unused(path):
                used_bytes -= _reserved_bytes(path, status)
        if used_bytes + needed_bytes > self._limit_bytes:
            raise CacheFull(
                f"{self.folder} may hold fetch.limit_gb={self._config.limit_gb:g}, of which {used_bytes / 1e9:.3g} GB "
                f"are in use, and {needed_bytes / 1e9:.3g} GB more are needed; raise fetch.limit_gb"
            )

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files of the cache; others in the folder are left alone. Names change under the lock only."""
        for path in self.folder.iterdir():
            if _ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):  # a fetch that failed has just removed it
                    yield path, path.stat()

    def _partial(self, wanted: FileSpec) -> Path:
        return self.folder / f"{wanted.sha256}.{wanted.size_bytes}.partial"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and processes from changing what is here."""
        try:
            with FileLock(self.folder / ".lock", timeout=self._config.total_s):
                yield
        except Timeout as error:
            raise RunFailed(f"{self.folder / '.lock'} is held by a process that does not go on; end it") from error

    @contextmanager
    def _full_disk(self, partial: Path | None = None) -> Iterator[None]:
        """Say in one line that the disk is full before the limit is reached, and remove the partial file."""
        try:
            with disk_errors(self.folder):
                yield
        except UserError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if partial is not None:
                partial.unlink(missing_ok=True)
            free_gb = shutil.disk_usage(self.folder).free / 1e9
            raise UserError(
                f"the disk of {self.folder} is full ({free_gb:.3g} GB free) before "
                f"fetch.limit_gb={self._config.limit_gb:g} is reached; lower that, free some space, or choose "
                "another fetch.cache_folder"
            ) from error


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"the disk of fetch.cache_folder cannot lock files: {error.strerror}; choose another"
        ) from error
    return True


def _reserved_bytes(path: Path, status: os.stat_result) -> int:
    found = _ENTRY.fullmatch(path.name)
    return int(found[1]) if found and found[1] else status.st_size


def _remove_unused(path: Path) -> bool:
    """Remove a file unless somebody holds it; says whether that was done."""
    try:
        descriptor = os.open(path, os.O_RDWR)  # a network disk locks exclusively only what is open for writing
    except OSError:
        return False
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True
