"""Files that are either whole or absent: atomic writes, checksums, locks."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from infra.errors import RunFailed, UserError

_DISK_ERRORS = {
    errno.ENOSPC: "no space left on the device; free some, or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.ENOENT: "a folder on the way cannot be made; choose another folder",
    errno.EEXIST: "something that is not a folder stands there; choose another folder",
}
_DISK_FAILURES = {
    errno.EIO: "the disk failed (input/output error); look after it, or choose another folder",
    errno.ESTALE: "the network disk has lost this file; mount it again, or choose another folder",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full, foreign or read-only disk raises into one line about `path`, RunFailed for a broken one."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FAILURES:
            raise RunFailed(f"cannot write {path}: {_DISK_FAILURES[error.errno]}") from error
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(f"cannot write {path}: {_DISK_ERRORS[error.errno]}") from error


def require_space(path: Path, needed_bytes: int) -> None:
    """Raise UserError unless the file system on which `path` will lie has `needed_bytes` left for this user."""
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    system = os.statvfs(there)
    free_bytes = system.f_bavail * system.f_frsize
    if system.f_blocks and free_bytes < needed_bytes:  # a file system that counts no blocks cannot say what is free
        raise UserError(
            f"cannot write {path}: it needs {needed_bytes / 1e6:,.1f} MB, but {free_bytes / 1e6:,.1f} MB are free; "
            "free some, or choose another folder"
        )


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` so that `path` holds either what it held before or all of it, even after a power cut.

    Raises UserError when the disk is full or not writable.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            fsync_path(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its name once the block has ended well.

    An older folder of that name is replaced. When the block raises, nothing is left behind; what a killed process
    leaves, `remove_remains` removes.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in sorted(partial.rglob("*")):
                fsync_path(file)
            fsync_path(partial)
            if path.exists():
                remove_folder(path)
            partial.replace(path)
            fsync_path(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder (of a link to one, the link) that loses its name first, so that no half of it is taken for it."""
    removed = path.with_name(f".{path.name}.removed-{os.getpid()}")
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    fsync_path(path.parent)
    _remove(removed)


def remove_remains(folder: Path) -> None:
    """Remove what killed processes left in `folder` of writing or removing; nobody else may be at it meanwhile."""
    for pattern in (".*.partial-*", ".*.removed-*"):
        for remains in folder.glob(pattern):
            _remove(remains)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Hold `folder` for this process; a second one gets a UserError instead of waiting.

    The lock is the kernel's (flock on `folder/.lock`): it ends with its process, however that ends.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{folder} is in use by another process that is {purpose}; wait for it, or choose another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()
