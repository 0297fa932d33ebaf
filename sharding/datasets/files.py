"""The files below a dataset's root: one rule for every reader, and the same order on every machine."""

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from sharding.format.manifest import Rejection

# Marks a root that sharding.simulation.datasets has drawn, whatever dataset it looks like.
SIMULATED_MARKER: Final = "SIMULATED.txt"

# Reasons for which a file, a row or a part of the dataset is not packed.
IGNORED: Final = "hidden or system file"
NO_ROW: Final = "file without a row"
NOT_UTF8: Final = "path is not UTF-8"
LINK_OUT: Final = "link out of root; follow_links=true packs it"
LINK_TO_FOLDER: Final = "link to a folder"
NOT_A_FILE: Final = "neither a file nor a folder"
NO_PATH: Final = "row without a path"
NO_PATIENT: Final = "row without a patient"
REPEATED: Final = "path of an earlier row"
NOT_A_TAR: Final = "not a .tar file"
UNUSED_TABLE: Final = "table that was not used"
ABSENT: Final = "missing part of the dataset"

_FILE: Final = "file"
_FOLDER: Final = "folder"

# What macOS, Windows, file systems and network storage add to every folder or disk, in lower case.
_SYSTEM_NAMES: Final = frozenset(
    (
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "system volume information",
        "thumbs.db",
    )
)


def visible_files(root: Path, folder: Path = Path(), *, follow_links: bool = False) -> Iterator[Path | Rejection]:
    """Yield the path of every file below `folder`, relative to `root`, folder by folder, sorted by name.

    Everything else is one Rejection: a hidden or system file or folder; a path that is not UTF-8, since JSON cannot
    hold it; a named pipe, socket or device; and some links. A link to a file inside `root` is a file, also if that is
    missing, as in a clone without its data. A link to a folder inside `root` is rejected, since its files have a path
    without it. Links out of `root` are rejected unless `follow_links` is on; each folder out of `root` is read only
    once, since links may form a cycle.

    Args:
        root: the dataset's root
        folder: where to begin, relative to `root`
        follow_links: whether links may lead out of `root`

    Raises:
        OSError: if a folder cannot be read
    """
    real_root = Path(os.path.realpath(root))
    followed: set[Path] = set()
    pending = [folder]
    while pending:
        parent, inner = pending.pop(), []
        with os.scandir(root / parent) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = parent / entry.name
            kind = _kind(entry, real_root, followed, follow_links)
            if path == Path(SIMULATED_MARKER):
                continue
            if kind == _FOLDER:
                inner.append(path)
            elif kind == _FILE:
                yield path if is_utf8(path) else Rejection(str(path), NOT_UTF8)
            else:
                yield Rejection(str(path), kind)
        pending.extend(reversed(inner))


def files_without_row(
    root: Path, named: Container[str], folder: Path = Path(), *, follow_links: bool
) -> Iterator[Rejection]:
    """Yield a Rejection for every file below `folder` that no row of a table names.

    Args:
        root: the dataset's root
        named: the paths that rows name, and those of the tables, relative to `root`
        folder: where to begin, relative to `root`
        follow_links: whether links may lead out of `root`
    """
    for item in visible_files(root, folder, follow_links=follow_links):
        rejection = item if isinstance(item, Rejection) else Rejection(item.as_posix(), NO_ROW)
        if rejection.path not in named:
            yield rejection


def leads_out(root: Path, path: Path) -> bool:
    """Return whether links take `path`, which is relative to `root`, to a place out of `root`."""
    try:
        return not Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))
    except ValueError:  # a NUL in the path, which names no file
        return False


def _kind(entry: "os.DirEntry[str]", real_root: Path, followed: set[Path], follow_links: bool) -> str:
    """Return _FILE, _FOLDER, or the reason for rejecting the entry."""
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
        return IGNORED
    if entry.is_symlink():
        return _link_kind(Path(os.path.realpath(entry.path)), real_root, followed, follow_links)
    if entry.is_dir(follow_symlinks=False):
        return _FOLDER
    return _FILE if entry.is_file(follow_symlinks=False) else NOT_A_FILE


def _link_kind(target: Path, real_root: Path, followed: set[Path], follow_links: bool) -> str:
    """Return the kind of a link; a folder to follow is added to `followed`."""
    is_inside = target.is_relative_to(real_root)
    if not is_inside and not follow_links:
        return LINK_OUT
    if target.is_dir():
        if is_inside or target in followed:
            return LINK_TO_FOLDER
        followed.add(target)
        return _FOLDER
    return NOT_A_FILE if target.exists() and not target.is_file() else _FILE


def is_utf8(path: Path) -> bool:
    """Return whether a path is text, which JSON, CSV and Parquet need."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Python represents other bytes as lone surrogates
        return False
    return True
