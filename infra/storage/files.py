"""Atomic writes, bounded reads, private folders, checksums, and one-line disk errors."""

import errno
import fcntl
import glob
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Final

from infra.errors import RunFailed, UserError, require

SMALL_BYTES: Final = 256 << 20  # far above any manifest, note or state; what is larger is not read into memory

_DISK_ERRORS: Final = {
    errno.ENOSPC: "no space left on the device; free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ELOOP: "a symbolic link stands where a file is needed; remove it, or choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOENT: "a parent folder cannot be created; choose another folder",
    errno.EEXIST: "a file with this name exists where a folder is needed; choose another folder",
    errno.EISDIR: "a folder with this name exists where a file is needed; choose another folder",
}
_DISK_FAILURES: Final = {
    errno.EIO: "the disk failed (input/output error); check it, or choose another folder",
    errno.ESTALE: "the network disk has lost this file; mount it again, or choose another folder",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn disk errors into one-line errors.

    Args:
        path: the file or folder that the block writes, for the message

    Raises:
        UserError: if the disk is full, read-only or not writable by this user, or the path is unusable
        RunFailed: if the disk is broken
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FAILURES:
            raise RunFailed(f"cannot write {path}: {_DISK_FAILURES[error.errno]}") from error
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(f"cannot write {path}: {_DISK_ERRORS[error.errno]}") from error


def require_space(path: Path, needed_bytes: int) -> None:
    """Check that a file or folder will fit on its disk.

    Args:
        path: the file or folder; it and its parents need not exist
        needed_bytes: its size

    Raises:
        UserError: if the file system has less free space for this user
    """
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    system = os.statvfs(parent)
    free_bytes = system.f_bavail * system.f_frsize
    if system.f_blocks and free_bytes < needed_bytes:  # some file systems count no blocks; their free space is unknown
        raise UserError(
            f"cannot write {path}: it needs {needed_bytes / 1e6:,.1f} MB, but {free_bytes / 1e6:,.1f} MB are free; "
            "free some space, or choose another folder"
        )


def real_path(path: Path) -> Path:
    """Return an absolute path without links; unlike `Path.resolve`, also for a link that leads to itself."""
    return Path(os.path.realpath(path))


def file_name_of(label: str) -> str:
    """Return a label as a part of a file's name: whatever is no letter, digit, dot or hyphen becomes one hyphen."""
    return re.sub("[^A-Za-z0-9.-]+", "-", label).strip("-")


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that it holds either its old or all of its new content, even after a power cut.

    What a killed process left of an earlier write of this file is removed.

    Args:
        path: the file; missing parent folders are created
        content: what to write; text becomes UTF-8

    Raises:
        UserError: if the disk is full or not writable
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that becomes `path` when the block succeeds, for content that is too large for `write_atomic`.

    If the block raises, `path` keeps its old content. The rest is as in `write_atomic`.
    """
    partial = _partial(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        try:
            with partial.open("xb") as file:
                with suppress(OSError):  # a disk without locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # so that nobody takes it for abandoned
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            fsync_path(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` that is renamed to `path` when the block succeeds.

    An existing folder of that name is replaced. If the block raises, nothing is left behind. If the process is killed,
    `remove_remains` cleans up after it.
    """
    partial = _partial(path)
    with disk_errors(path):
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
    """Rename a folder, then delete it, so that a half-deleted folder is never mistaken for a whole one.

    If the path is a symbolic link, only the link is removed.
    """
    removed = path.with_name(f".{path.name}.removed-{token_hex(8)}")
    path.rename(removed)
    fsync_path(path.parent)
    _remove(removed)


def remove_remains(folder: Path, name: str | None = None) -> None:
    """Remove unfinished files and folders of killed processes.

    Args:
        folder: where they are
        name: name of the file or folder that was not finished; by default every name. No other process may write it
            meanwhile
    """
    stem = "*" if name is None else glob.escape(name)
    for pattern in (f".{stem}.partial-*", f".{stem}.removed-*"):
        for remains in folder.glob(pattern):
            _remove(remains)


def _partial(path: Path) -> Path:
    """Return a new name for an unfinished file; process numbers would meet on a disk that containers share."""
    return path.with_name(f".{path.name}.partial-{token_hex(8)}")


def _remove_abandoned(path: Path) -> None:
    """Remove the unfinished versions of a file whose writers were killed: nobody holds their locks.

    An empty one may belong to a process that is about to lock it. On a disk without locks, all stay.
    """
    for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with suppress(OSError), partial.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:
                partial.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_private_folder(path: Path, hint: str) -> None:
    """Create a folder that only this user can read, in a place where others can create folders too.

    Anyone can create a folder of a known name in such a place first, and then read or replace what is written there.

    Args:
        path: the folder; an earlier process of this user may have left it
        hint: the way out, for the message

    Raises:
        UserError: if others made it or can reach into it, or it cannot be created
    """
    with disk_errors(path):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()  # a link may lead into a folder of another user
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    require(is_private, f"{path} must be a folder that belongs to you alone, with mode 0700; {hint}")


def read_small(path: Path) -> bytes:
    """Return the content of a regular file of at most SMALL_BYTES.

    Raises:
        OSError: if it cannot be read
        UserError: if it is larger, or not a regular file
    """
    size_bytes = regular_size(path)
    require(
        size_bytes <= SMALL_BYTES,
        f"{path} has {size_bytes / 1e6:,.0f} MB, and at most {SMALL_BYTES >> 20} MiB of such a file are read; "
        "remove it, or name another folder",
    )
    return path.read_bytes()


def regular_size(path: Path) -> int:
    """Return the size in bytes of a regular file.

    Call it before a file that others may have put there is opened: a pipe can block for ever, and a link to a device
    can have no end.

    Raises:
        OSError: if there is no such file, or it cannot be reached
        UserError: if it is not a regular file
    """
    status = path.stat()
    require(stat.S_ISREG(status.st_mode), f"{path} is not a regular file; remove it, or name another folder")
    return status.st_size


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; raises like `regular_size`."""
    regular_size(path)
    return path.read_bytes()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
