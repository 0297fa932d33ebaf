"""What is done to disks: full ones, damaged files, and a kill at any one of the things that a process does to one."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

OnEvent = Callable[[str, str], None]  # gets what is about to happen, and the path that it happens to

FILLER = "filler"
_AUDITED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_IN_FOLDER = {"os.remove", "os.rmdir"}  # whose path may be one in an open folder, their second argument


class NoDisk(Exception):
    """A small file system cannot be made here; says why."""


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[None]:
    """Mount a file system of this size on a folder until the block ends; raises NoDisk."""
    if os.geteuid() != 0:
        raise NoDisk("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    made = subprocess.run(mount, check=False, capture_output=True, text=True)
    if made.returncode:
        raise NoDisk(f"may not mount a file system here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left_bytes: int = 2**20) -> Path:
    """Fill a disk but for so many bytes; returns the file that does it."""
    filler = disk / FILLER
    with filler.open("wb") as file:
        while not _is_filled(file, disk, left_bytes):
            pass
    return filler


def _is_filled(file: BinaryIO, disk: Path, left_bytes: int) -> bool:
    """Give a file the rest of a disk; says no when somebody else, such as a save, has taken some of it meanwhile."""
    free = os.statvfs(disk)
    try:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left_bytes)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def on_disk_events(folder: Path, act: OnEvent) -> None:
    """Call `act` before each thing that this process does to the disk in `folder`, until it ends.

    Events are `open`, `os.mkdir`, `os.rename`, `os.remove`, `os.rmdir`, `fsync`, and `write`, before which the first
    half is written.
    """

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            if event in _IN_FOLDER and arguments[1] >= 0:
                path = os.path.join(_path_of(arguments[1]), path)  # noqa: PTH118
            happens(event, path)

    def happens(event: str, path: str) -> None:
        if str(folder) in path:
            act(event, path)

    opened, synced = Path.open, os.fsync

    def watched_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(path, mode, *arguments, **options)
        return _Halved(file, path, act) if "w" in mode and str(folder) in str(path) else file

    def watched_fsync(descriptor: int) -> None:
        happens("fsync", _path_of(descriptor))
        synced(descriptor)

    Path.open, os.fsync = watched_open, watched_fsync  # type: ignore[method-assign, assignment]
    sys.addaudithook(audit)


def _path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


class _Halved:
    """A file that writes in two halves, with an event in between."""

    def __init__(self, file: BinaryIO, path: Path, act: OnEvent) -> None:
        self._file, self._path, self._act = file, path, act

    def __enter__(self) -> "_Halved":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
