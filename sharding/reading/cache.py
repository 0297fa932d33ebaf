"""A bounded local cache of downloaded files, named by the sha256 of their content and shared by all processes.

    SHA256               a whole file; its readers hold a shared flock on it
    SHA256.SIZE.partial  an unfinished download; its process holds an exclusive flock on it and reserves SIZE bytes
    .lock                held while the cache makes room

The kernel drops a lock when its process ends, so an unlocked file is unused: a whole file makes room for a new one,
the one used longest ago first, and a partial file is continued or removed. The folder never exceeds its limit, even
counting deleted files that are still being read, except damaged ones. Nobody reads a partial file: it gets its final
name when its sha256 is right and it is on disk. Later only the size of a whole file is checked, since hashing gigabytes
again would cost more than reading them. Every read of a sample checks its crc32; if that is wrong, the file is hashed
again and, if it has changed, removed and downloaded again. Other processes that have it open keep what they read.

Caches such as diskcache and fsspec's filecache offer neither locks that last as long as a read nor a hard limit.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Final

from infra.configuration.options import key, setting
from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.storage.files import disk_errors
from infra.storage.locks import StillHeld, try_lock, waiting_lock
from sharding.reading.fetch import FetchConfig, Fetcher, FileSpec, PartialDownload, Unavailable
from sharding.reading.location import RemoteFolder

_ENTRY: Final = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.partial)?")
_POLL_S: Final = 0.05
_CHUNK_BYTES: Final = 1 << 20


class CacheFull(RunFailed):
    """The files in use leave no room for another one."""


class OpenFile:
    """A whole file, open for reading; if it is in the cache, it stays there as long as this object lives.

    Attributes:
        path: the file
        descriptor: its open file descriptor
        was_cached: whether the file was in the cache already
    """

    def __init__(self, path: Path, descriptor: int, was_cached: bool = False) -> None:
        self.path, self.descriptor, self.was_cached = path, descriptor, was_cached

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardCache:
    """Opens remote files and downloads those that are not cached; safe to use from several threads and processes.

    Attributes:
        folder: the folder of the cached files
        fetcher: downloads the files and counts the bytes
    """

    def __init__(self, config: FetchConfig) -> None:
        """Create the folder, for this user alone; one that exists may be shared by a group.

        Raises:
            UserError: if the folder cannot be created, or everyone may write to it
        """
        try:
            self.folder = config.cache_folder.expanduser()
        except RuntimeError as error:
            name = key(FetchConfig, "cache_folder")
            raise UserError(
                f"{name}={config.cache_folder} is in a home folder that this machine does not know; choose another "
                f"{name}"
            ) from error
        self.fetcher = Fetcher(config)
        self._config = config
        self._limit_bytes = int(config.limit_gb * 1e9)
        with disk_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_open_to_all = self.folder.stat().st_mode & stat.S_IWOTH
        # A whole file is read without being hashed again, so whoever may write here chooses the images.
        require(
            not is_open_to_all,
            f"{setting(config, 'cache_folder')} is a folder that every user may write to; "
            f"try {key(config, 'cache_folder')}={config.cache_folder / 'sternum'}",
        )
        with disk_errors(self.folder), self._locked():
            pass

    def require_room(self, needed_bytes: int, readers: str) -> None:
        """Raise UserError unless the limit and the disk have room for `needed_bytes`.

        Args:
            needed_bytes: the bytes in use at a time
            readers: their users, as the start of a clause for the message, such as "one reader reads"

        Raises:
            UserError: if the limit or the disk is too small
        """
        needed_gb = needed_bytes / 1e9
        require(
            needed_bytes <= self._limit_bytes,
            f"{self._limit()} is less than the {needed_gb:.3g} GB that {readers} at a time; "
            f"try {key(FetchConfig, 'limit_gb')}={1.5 * needed_gb:.2g}",
        )
        free_bytes = shutil.disk_usage(self.folder).free
        with self._locked():
            used_bytes = sum(status.st_blocks * 512 for _, status in self._entries())
        require(
            needed_bytes <= free_bytes + used_bytes,
            f"{self.folder} has {(free_bytes + used_bytes) / 1e9:.3g} GB for shards, less than the {needed_gb:.3g} GB "
            f"that {readers} at a time; choose a {key(FetchConfig, 'cache_folder')} on a larger disk",
        )

    def open(
        self,
        remote: RemoteFolder,
        spec: FileSpec,
        stop: threading.Event | None = None,
        *,
        check: bool = False,
    ) -> OpenFile:
        """Return a file, and download it if it is not cached; waits while another process downloads it.

        Args:
            remote: the folder to download from
            spec: the file
            stop: ends the download early when set
            check: whether to compare the content of a cached file with its hash, and download it again if it differs

        Raises:
            Unavailable: if the file cannot be downloaded, or `stop` is set
            CacheFull: if the files in use leave no room now
            UserError: if the file is larger than the limit, or the disk is full
        """
        require(
            spec.size_bytes <= self._limit_bytes,
            f"{self._limit()} is less than the {spec.size_bytes / 1e9:.3g} GB of {remote.name}/{spec.name}; raise it",
        )
        stop = stop or threading.Event()
        deadline_s = time.monotonic() + self._config.total_s
        was_cached = True
        while True:
            pinned = self._find(spec, was_cached)
            if pinned is not None and not (check and pinned.was_cached and _is_damaged(pinned, spec)):
                return pinned
            if pinned is not None:
                say(f"warning: {pinned.path} is damaged; {remote.name}/{spec.name} is downloaded again")
                self._discard(pinned)
                del pinned
            file = self._begin(spec)
            if file is not None:
                with file:
                    self._fetch(remote, spec, file, stop)
                was_cached = False
            elif stop.wait(_POLL_S) or time.monotonic() > deadline_s:
                raise Unavailable(
                    f"{remote.name}/{spec.name} cannot be downloaded: another process is still downloading it after "
                    f"{key(FetchConfig, 'total_s')}={self._config.total_s:g}; check that process",
                    is_final=False,
                )

    def _limit(self) -> str:
        return f"{key(FetchConfig, 'limit_gb')}={self._config.limit_gb:g}"

    def _find(self, spec: FileSpec, was_cached: bool) -> OpenFile | None:
        """Return the whole file if it is cached, marked as just used."""
        path = self.folder / spec.sha256
        try:
            pinned = OpenFile(path, os.open(path, os.O_RDONLY), was_cached)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}; choose another {key(FetchConfig, 'cache_folder')}"
            ) from error
        if not _try_lock(pinned.descriptor, fcntl.LOCK_SH):
            return None  # another process is removing it
        status = os.fstat(pinned.descriptor)
        if status.st_nlink == 0:
            return None
        if status.st_size != spec.size_bytes and spec.is_exact:
            self._discard(pinned)
            return None
        with suppress(OSError):  # the file of another user keeps its age
            os.utime(pinned.descriptor)
        return pinned

    def _discard(self, pinned: OpenFile) -> None:
        """Remove a file that turned out to be wrong, unless another process has replaced it meanwhile."""
        with self._locked(), disk_errors(pinned.path), suppress(FileNotFoundError):
            if os.path.samestat(pinned.path.stat(), os.fstat(pinned.descriptor)):
                pinned.path.unlink()

    def _begin(self, spec: FileSpec) -> FileIO | None:
        """Return the partial file, locked and with room for all of it; None if another process has it."""
        path = self._partial(spec)
        with self._locked(), self._full_disk():
            file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
            try:
                if not _try_lock(file.fileno(), fcntl.LOCK_EX):
                    file.close()
                    return None
                if (self.folder / spec.sha256).exists():  # another process has finished it
                    path.unlink()
                    file.close()
                    return None
                self._make_room(spec.size_bytes, path)
            except BaseException:
                file.close()
                path.unlink(missing_ok=True)
                raise
            return file

    def _fetch(self, remote: RemoteFolder, spec: FileSpec, file: FileIO, stop: threading.Event) -> None:
        """Complete the partial file and rename it; if that fails, its bytes stay for the next attempt."""
        path = self._partial(spec)
        with self._full_disk(path):
            self.fetcher.fetch(remote, spec, PartialDownload(file), stop)
            os.fsync(file.fileno())
            with self._locked():
                path.replace(self.folder / spec.sha256)

    def _make_room(self, needed_bytes: int, keep: Path) -> None:
        """Remove unused files until there is room; `keep` is not counted."""
        entries = [(path, status) for path, status in self._entries() if path != keep]
        used_bytes = sum(_reserved_bytes(path, status) for path, status in entries)
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if used_bytes + needed_bytes <= self._limit_bytes:
                return
            if _remove_unused(path):
                used_bytes -= _reserved_bytes(path, status)
        if used_bytes + needed_bytes > self._limit_bytes:
            raise CacheFull(
                f"{self.folder} is full: {used_bytes / 1e9:.3g} GB of {self._limit()} are in use, and "
                f"{needed_bytes / 1e9:.3g} GB more are needed; raise {key(FetchConfig, 'limit_gb')}"
            )

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files of the cache, but no other files of the folder. Names change only under the lock."""
        for path in self.folder.iterdir():
            if _ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):  # a failed download has just removed it
                    yield path, path.stat()

    def _partial(self, spec: FileSpec) -> Path:
        return self.folder / f"{spec.sha256}.{spec.size_bytes}.partial"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and processes from changing the folder."""
        try:
            with waiting_lock(self.folder / ".lock", self._config.total_s):
                yield
        except StillHeld as error:
            raise RunFailed(f"{self.folder / '.lock'} is held by a process that hangs; end that process") from error

    @contextmanager
    def _full_disk(self, partial: Path | None = None) -> Iterator[None]:
        """Report in one line that the disk is full before the limit is reached, and remove the partial file."""
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
                f"the disk of {self.folder} is full ({free_gb:.3g} GB free) before {self._limit()} is reached; "
                f"lower the limit, free some space, or choose another {key(FetchConfig, 'cache_folder')}"
            ) from error


def _is_damaged(pinned: OpenFile, spec: FileSpec) -> bool:
    """Return whether a file differs from its hash, or the disk cannot read it."""
    content_hash, position = sha256(), 0
    try:
        while chunk := os.pread(pinned.descriptor, _CHUNK_BYTES, position):
            content_hash.update(chunk)
            position += len(chunk)
    except OSError:
        return True
    return content_hash.hexdigest() != spec.sha256


def _try_lock(descriptor: int, mode: int) -> bool:
    return try_lock(descriptor, mode, key(FetchConfig, "cache_folder"))


def _reserved_bytes(path: Path, status: os.stat_result) -> int:
    entry = _ENTRY.fullmatch(path.name)
    return int(entry[1]) if entry and entry[1] else status.st_size


def _remove_unused(path: Path) -> bool:
    """Remove a file unless it is in use; return whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDWR)  # network disks give exclusive locks only on files open for writing
    except OSError:
        return False
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True
