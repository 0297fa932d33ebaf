"""Manifests of packed folders, read from this machine or from a URL."""

from pathlib import Path

from infra.errors import UserError
from infra.storage.files import read_small
from sharding.format.manifest import MANIFEST_NAME, PARTIAL, Manifest, NotJson, decode_manifest
from sharding.reading.fetch import FetchConfig, Fetcher, Unavailable
from sharding.reading.location import FetchFailed, LocalFolder, Location, RemoteFolder, open_location


def read_manifest(location: Location, fetch: FetchConfig | None = None) -> Manifest:
    """Read the `manifest.json` of a packed folder, local or remote.

    Raises:
        UserError: if the manifest is missing or invalid
        RunFailed: if it cannot be downloaded
    """
    folder = open_location(location)
    if isinstance(folder, LocalFolder):
        return _read_local(folder.path)
    return fetch_manifest(folder, Fetcher(fetch or FetchConfig()))


def _read_local(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        content = read_small(path)
    except FileNotFoundError as error:
        if (folder / PARTIAL).exists():
            raise UserError(f"{folder} is not fully packed; run the same sternum shard command to finish it") from error
        raise UserError(
            f"{folder} has no {MANIFEST_NAME}; pack a dataset into it first: sternum shard --help"
        ) from error
    except NotADirectoryError as error:
        raise UserError(f"{folder} is a file; name the folder that holds it: {folder.parent}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from error
    return decode_manifest(content, str(path))


def fetch_manifest(remote: RemoteFolder, fetcher: Fetcher) -> Manifest:
    """Read the manifest of a remote folder; raises like `read_manifest`."""
    path = f"{remote.name}/{MANIFEST_NAME}"
    previous = b""

    def decode(content: bytes) -> Manifest:
        nonlocal previous
        try:
            return decode_manifest(content, path)
        except NotJson as error:
            if content == previous:
                raise
            previous = content  # maybe cut on the way, which only its end shows: download it again
            raise FetchFailed(f"it is not JSON: {error.__cause__}") from error

    try:
        return fetcher.read(remote, MANIFEST_NAME, decode)
    except Unavailable as error:
        if error.is_final:
            raise UserError(f"{error}; name a folder written by sternum shard") from error
        raise
