"""The tars of a URL, copied to a local folder, because packing reads each image from its place, in another order."""

import re
from itertools import islice
from pathlib import Path
from typing import Final

from braceexpand import braceexpand

from infra.errors import UserError, require
from infra.log import progress
from infra.storage.files import disk_errors, fsync_path
from infra.storage.locks import locked
from infra.storage.object_store import SCHEMES, ObjectStore
from infra.urls import scheme_of, shown
from sharding.reading.fetch import FetchConfig, Fetcher
from sharding.reading.location import LocalFolder, open_location

_MOST_TARS: Final = 100_000
_RANGE: Final = re.compile(r"\{(-?\d+)\.\.(-?\d+)[.}]")
_LONGEST_S: Final = 24 * 3600.0  # for one tar; one that brings no byte for `stall_s` is asked for again anyway


def download_tars(url: str, folder: Path) -> None:
    """Copy the tars that `url` names into `folder`, except those that are there already; each appears whole.

    Args:
        url: a folder of an object store, or tars with braces for their numbers, such as
            https://SERVER/FOLDER/{00000..00009}.tar
        folder: the local folder; created if missing

    Raises:
        UserError: if the URL names no tars, or `folder` is in use or cannot be written
        RunFailed: if a tar cannot be downloaded; those before it stay
    """
    parent, names = _tars(url)
    with locked(folder, f"downloading {shown(url)}"):
        missing = [name for name in names if not (folder / name).is_file()]
        remote = open_location(parent)
        assert not isinstance(remote, LocalFolder), "the root is a URL of a server or a store"
        fetcher = Fetcher(FetchConfig(total_s=_LONGEST_S))
        for name in progress(missing, "downloading", total=len(missing), unit="tar"):
            partial = folder / f".{name}.part"
            with disk_errors(folder / name):
                with partial.open("wb", buffering=0) as file:
                    fetcher.copy(remote, name, file)
                fsync_path(partial)
                partial.replace(folder / name)
                fsync_path(folder)


def _tars(url: str) -> tuple[str, list[str]]:
    """Return the URL of the folder and the names of its tars."""
    if url.endswith(".tar"):
        parent, _, pattern = url.rpartition("/")
        require("{" not in parent, f"root={shown(url)} may have braces only in the names of the tars; pack each folder")
        # The library expands each pair of braces as a whole, so a long range must not reach it.
        try:
            too_long = any(abs(int(last) - int(first)) > _MOST_TARS for first, last in _RANGE.findall(pattern))
            names = [] if too_long else list(islice(braceexpand(pattern), _MOST_TARS + 1))
        except ValueError as error:
            raise UserError(
                f"root={shown(url)} has braces that do not match: {error}; write {{00000..00009}}"
            ) from error
        require(
            not too_long and len(names) <= _MOST_TARS,
            f"root={shown(url)} names more than {_MOST_TARS} tars; pack a part of them",
        )
        return parent, names
    require(
        scheme_of(url) in SCHEMES,
        f"root={shown(url)} is a folder of a web server, which does not list its files; name the tars: "
        f"{shown(url)}/{{00000..00009}}.tar",
    )
    found = sorted(name for name in ObjectStore(url, "root").sizes() if name.endswith(".tar"))
    require(bool(found), f"root={shown(url)} has no .tar; name the folder that has them")
    return url, found
