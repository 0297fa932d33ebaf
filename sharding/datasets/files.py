"""The files below a folder, in the same order on every machine."""

import os
from collections.abc import Iterator
from pathlib import Path

from sharding.format.manifest import Rejection


def visible_files(root: Path) -> Iterator[Path | Rejection]:
    """Yield the paths, relative to `root`, of all files below it, sorted and without hidden files and folders.

    A path that is not UTF-8 is a Rejection, since JSON cannot hold it. So is a link to a folder, since links may
    form a cycle.
    """
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        relative = Path(folder).relative_to(root)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(file for file in files if not file.startswith(".")):
            path = relative / name
            yield path if _is_utf8(path) else Rejection(str(path), "path is not UTF-8")
        for name in subfolders:
            if (root / relative / name).is_symlink():
                yield Rejection(str(relative / name), "link to a folder")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Python represents other bytes as lone surrogates
        return False
    return True


def _raise(error: OSError) -> None:
    raise error
