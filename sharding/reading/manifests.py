"""Reads the `manifest.json` of a packed folder, on this machine or behind a URL."""

from pathlib import Path

from infra.errors import UserError
from sharding.format.manifest import NAME, PARTIAL, Manifest, NotJson, decode_manifest
from sharding.reading.fetch import FetchConfig, Fetcher, Unavailable
from sharding.reading.location import FetchFailed, LocalFolder, Location, RemoteFolder, open_location


def read_manifest(place: Location, fetch: FetchConfig | None = None) -> Manifest:
    """Read the `manifest.json` of a packed folder, wherever it is.

    Raises UserError when there is none or it is not one, and RunFailed when it cannot be had from elsewhere.
    """
    found = open_location(place)
    if isinstance(found, LocalFolder):
        return _read_local(found.path)
    return fetch_manifest(found, Fetcher(fetch or FetchConfig()))


def _read_local(folder: Path) -> Manifest:
    path = folder / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        if (folder / PARTIAL).exists():
            raise UserError(f"packing into {folder} has not ended; give the same command again to finish it") from error
        raise UserError(f"{folder} holds no {NAME}; pack a dataset into it first: sternum shard --help") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}; pack the dataset again") from error
    return decode_manifest(content, str(path))


def fetch_manifest(remote: RemoteFolder, fetcher: Fetcher) -> Manifest:
    """Read the manifest of a folder elsewhere; raises as `read_manifest`."""
    path = f"{remote.name}/{NAME}"
    before = b""

    def decode(content: bytes) -> Manifest:
        nonlocal before
        try:
            return decode_manifest(content, path)
        except NotJson as error:
            if content == before:
                raise
            before = content  # it may have been cut on the way: nothing but its end tells
            raise FetchFailed(f"it is no JSON: {error.__cause__}") from error

    try:
        return fetcher.read(remote, NAME, decode)
    except Unavailable as error:
        if error.is_final:
            raise UserError(f"{error}; name a folder that sternum shard wrote") from error
        raise
