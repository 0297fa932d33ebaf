"""The files below a folder, in one order everywhere."""

import os
from collections.abc import Iterator
from pathlib import Path

from sharding.format.manifest import Rejection


def visible_files(root: Path) -> Iterator[Path | Rejection]:
    """Yield the paths, relative to `root`, of all files below it, sorted; hidden files and folders are left out.

    A path that is not UTF-8, which no JSON can hold, is a Rejection, and so is a link to a folder: links may circle.
    """
    for folder, names, files in os.walk(root, onerror=_raise):
        here = Path(folder).relative_to(root)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(file for file in files if not file.startswith(".")):
            yield here / name if _is_utf8(here / name) else Rejection(str(here / name), "path is not UTF-8")
        for name in names:
            if (root / here / name).is_symlink():
                yield Rejection(str(here / name), "link to a folder")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Python has such bytes as lone surrogates
        return False
    return True


def _raise(error: OSError) -> None:
    raise error
