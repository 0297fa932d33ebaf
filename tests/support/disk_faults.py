"""Disk faults: a full disk, damaged files, and a hook before each disk operation of a process."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

OnEvent = Callable[[str, str], None]  # called with the operation and its path, before it happens

FILLER = "filler"
_AUDITED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_IN_FOLDER = {"os.remove", "os.rmdir"}  # their path may be relative to an open folder, the second argument


class NoDisk(Exception):
    """A small file system cannot be made on this machine; the message says why."""


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[None]:
    """Mount a file system of `size_mb` MiB on a folder until the block ends.

    Raises:
        NoDisk: if this machine does not allow it.
    """
    if os.geteuid() != 0:
        raise NoDisk("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        raise NoDisk(f"cannot mount a file system on this machine: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left_bytes: int = 2**20) -> Path:
    """Fill a disk except for `left_bytes`, and return the file that fills it."""
    filler = disk / FILLER
    with filler.open("wb") as file:
        while not _is_filled(file, disk, left_bytes):
            pass
    return filler


def _is_filled(file: BinaryIO, disk: Path, left_bytes: int) -> bool:
    """Give a file the rest of a disk; return False if another writer, such as a save, took some of it meanwhile."""
    free = os.statvfs(disk)
    try:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left_bytes)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def flip_a_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def on_disk_events(folder: Path, act: OnEvent) -> None:
    """Call `act` before each disk operation of this process in `folder`, until the process ends.

    Operations are `open`, `os.mkdir`, `os.rename`, `os.remove`, `os.rmdir`, `fsync`, and `write`. Before `write`, the
    first half of the content is on disk already.
    """

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            if event in _IN_FOLDER and arguments[1] >= 0:
                path = os.path.join(_path_of(arguments[1]), path)  # noqa: PTH118
            report(event, path)

    def report(event: str, path: str) -> None:
        if str(folder) in path:
            act(event, path)

    opened, synced = Path.open, os.fsync

    def watched_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(path, mode, *arguments, **options)
        return _HalvingFile(file, path, act) if "w" in mode and str(folder) in str(path) else file

    def watched_fsync(descriptor: int) -> None:
        report("fsync", _path_of(descriptor))
        synced(descriptor)

    Path.open, os.fsync = watched_open, watched_fsync  # type: ignore[method-assign, assignment]
    sys.addaudithook(audit)


def _path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


class _HalvingFile:
    """A file that writes in two halves, with an event between them."""

    def __init__(self, file: IO[Any], path: Path, act: OnEvent) -> None:
        self._file, self._path, self._act = file, path, act

    def __enter__(self) -> "_HalvingFile":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        half = len(content) // 2
        written = self._file.write(content[:half])
        self._file.flush()
        self._act("write", str(self._path))
        return written + self._file.write(content[half:])
