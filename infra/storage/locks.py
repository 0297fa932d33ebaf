"""Locks on folders and files: the kernel's flock, which ends with its process, however that ends.

A disk without flock is refused. The package filelock would put up a marker file there instead, which a killed process
leaves behind, so that its folder stays locked.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from infra.errors import RunFailed, UserError
from infra.storage.files import disk_errors, regular_size

_LOCK: Final = ".lock"
_POLL_S: Final = 0.05
_HELD: Final = (errno.EWOULDBLOCK, errno.EACCES)  # what the kernel answers if another process holds the lock


class StillHeld(Exception):
    """Another thread or process has not released a lock in time."""


class FolderLock:
    """The lock of a folder, held by this process."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder, self._descriptor = folder, descriptor

    def require_held(self) -> None:
        """Raise RunFailed if the folder was removed or replaced, so that another process may have begun there."""
        if not _is_at(self._descriptor, self._folder / _LOCK):
            raise RunFailed(
                f"{self._folder} was removed or replaced while this process was using it; nothing more is written there"
            )


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[FolderLock]:
    """Hold a lock on a folder until the block ends; never wait for another process.

    Args:
        folder: the folder; it is created if missing
        purpose: the activity of the process that holds the lock, such as "pretraining", for the message

    Raises:
        UserError: if another process holds the lock, or the folder cannot be written, or its disk cannot lock files
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock_file(folder / _LOCK)
    if descriptor is None:
        raise UserError(
            f"{folder} is in use by another process that is {purpose}; wait for it, or choose another folder"
        )
    try:
        yield FolderLock(folder, descriptor)
    finally:
        _release(descriptor)


@contextmanager
def waiting_lock(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a lock file until the block ends; wait for other threads and processes.

    Raises:
        StillHeld: if another one holds it for `timeout_s` seconds
        UserError: if the disk cannot lock files
    """
    until_s = time.monotonic() + timeout_s
    while (descriptor := _lock_file(path)) is None:
        if time.monotonic() > until_s:
            raise StillHeld
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        _release(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder, or the lock cannot be read.

    This takes the lock for a few microseconds; a process that calls `locked` in that time gets a UserError.
    """
    try:
        regular_size(folder / _LOCK)
        with (folder / _LOCK).open("rb") as lock:
            return not try_lock(lock.fileno(), fcntl.LOCK_SH, folder)
    except FileNotFoundError:
        return False
    except (OSError, UserError):
        return True


def try_lock(descriptor: int, mode: int, name: object) -> bool:
    """Lock an open file without waiting; return whether that succeeded.

    Args:
        descriptor: the open file; the lock ends when it is closed
        mode: fcntl.LOCK_EX, or fcntl.LOCK_SH to share it
        name: the folder, or the option that names it, for the message

    Raises:
        UserError: if the disk cannot lock files
    """
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise UserError(
            f"the disk of {name} cannot lock files: {error.strerror}; choose a folder on another disk"
        ) from error
    return True


def _lock_file(path: Path) -> int | None:
    """Return the descriptor of a lock file, which is created if missing, locked; None if another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        is_held = is_ours = False
        try:
            is_held = not try_lock(descriptor, fcntl.LOCK_EX, path.parent)
            is_ours = not is_held and _is_at(descriptor, path)
        finally:
            if not is_ours:
                os.close(descriptor)
        if is_ours:
            return descriptor
        if is_held:
            return None
        # The file was removed in between, so that its lock would keep nobody out.


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _release(descriptor: int) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child process may have inherited the descriptor
    os.close(descriptor)
