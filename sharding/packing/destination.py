"""Where shards are written: a local folder or an object store.

Every file appears whole or not at all. Notes about an unfinished packing are in `OUT/.partial/`, so that any machine
that reaches OUT can resume it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from infra.errors import UserError, require
from infra.storage.files import disk_errors, fsync_path, make_private_folder, read_small, real_path, sha256_file
from infra.storage.locks import locked
from infra.storage.object_store import ObjectStore, file_path, require_store_url
from infra.urls import Location, scheme_of, shown
from sharding.format.manifest import PARTIAL, Shard

_STAGING: Final = "writing"


class OtherPacking(UserError):
    """The destination belongs to another packing, whose files must stay."""


class Destination(Protocol):
    """The folder that a packing writes its shards to.

    Attributes:
        staging: local folder for files that are being written; it exists while the destination is locked
        folder: the folder itself, None if it is in an object store
    """

    staging: Path
    folder: Path | None

    def locked(self) -> AbstractContextManager[None]:
        """Create the staging folder and keep other processes out of the destination.

        If the block raises, unfinished files are removed, and the destination too if it holds no finished one; but
        nothing is if it raises OtherPacking.
        """

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, notes excluded."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if it does not exist."""

    def commit(self, file: Path, name: str) -> None:
        """Move a file from the staging folder to the destination."""

    def holds(self, shard: Shard) -> bool:
        """Return whether the destination has a shard and the files beside it as they were written."""

    def notes(self) -> list[str]:
        """Return the names of the notes."""

    def is_tidy(self) -> bool:
        """Return whether no unfinished packing left files behind."""

    def finish(self) -> None:
        """Remove notes and staging folder."""


def open_destination(out: Location) -> Destination:
    """Open the folder that `out` names: a path, or a URL such as s3://BUCKET/FOLDER.

    Raises:
        UserError: if it is a file, or a URL that cannot be opened or holds credentials
    """
    if isinstance(out, Path) or scheme_of(out) is None:
        return _LocalDestination(Path(out))
    scheme = require_store_url(out, "out")
    return _LocalDestination(file_path(out)) if scheme == "file" else _StoreDestination(out)


class _LocalDestination:
    """A local folder; the staging folder lies in it, so that a rename moves a file to its final name."""

    def __init__(self, path: Path) -> None:
        require(not path.is_file(), f"out={path} is a file; choose another folder")
        self._path = real_path(path)
        self.folder: Path | None = self._path
        self._partial = self._path / PARTIAL
        self.staging = self._partial / _STAGING

    @contextmanager
    def locked(self) -> Iterator[None]:
        existed = self._path.exists()
        with locked(self._partial, f"packing into {self._path}"), disk_errors(self._path):
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir()
            try:
                yield
            except BaseException:
                shutil.rmtree(self.staging, ignore_errors=True)
                if not self.sizes():
                    shutil.rmtree(self._partial, ignore_errors=True)
                    if not existed:
                        self._path.rmdir()
                raise

    def sizes(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        return {path.name: path.stat().st_size for path in self._path.iterdir() if path.name != PARTIAL}

    def read(self, name: str) -> bytes | None:
        try:
            return read_small(self._path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def commit(self, file: Path, name: str) -> None:
        final = self._path / name
        fsync_path(file)
        file.replace(final)
        fsync_path(final.parent)

    def holds(self, shard: Shard) -> bool:
        files = {shard.name: shard.sha256, **shard.companions}
        try:
            return all(sha256_file(self._path / name) == expected for name, expected in files.items())
        except OSError:
            return False

    def notes(self) -> list[str]:
        return sorted(f"{PARTIAL}/{path.name}" for path in self._partial.glob("*.json"))

    def is_tidy(self) -> bool:
        return not self._partial.exists()

    def finish(self) -> None:
        shutil.rmtree(self._partial)
        fsync_path(self._path)


class _StoreDestination:
    """A folder of an object store; each shard is written to a local temporary folder first and then uploaded.

    An object store has no lock, so only processes of one user on one machine are kept apart by one. Two machines that
    pack the same dataset with the same options write the same bytes. Of two other jobs, the one whose note is there
    goes on (`packing.job`).
    """

    def __init__(self, url: str) -> None:
        self.folder: Path | None = None
        self._url = shown(url)
        self._store = ObjectStore(
            url, "out", hint="check the address and the credentials; the same command resumes the packing"
        )
        # The same name for the same user and URL, so that the next process finds and removes what a killed one left.
        name = f"sternum-{os.geteuid()}-{sha256(self._url.encode()).hexdigest()[:16]}"
        self._local = Path(tempfile.gettempdir()) / name
        self.staging = self._local / _STAGING

    @contextmanager
    def locked(self) -> Iterator[None]:
        make_private_folder(self._local, "remove it, or set TMPDIR to a folder of yours")
        with locked(self._local, f"packing into {self._url}"), disk_errors(self._local):
            try:
                shutil.rmtree(self.staging, ignore_errors=True)
                self.staging.mkdir()
                yield
            except OtherPacking:
                raise
            except BaseException:
                with suppress(Exception):  # the first error matters more
                    if not self.sizes():
                        self.finish()
                raise
            finally:
                shutil.rmtree(self._local, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        return {name: size for name, size in self._store.sizes().items() if name != PARTIAL}

    def read(self, name: str) -> bytes | None:
        return self._store.read(name)

    def commit(self, file: Path, name: str) -> None:
        self._store.put(file, name)
        file.unlink()

    def holds(self, shard: Shard) -> bool:
        sizes = self.sizes()
        return sizes.get(shard.name) == shard.size_bytes and shard.companions.keys() <= sizes.keys()

    def notes(self) -> list[str]:
        return sorted(f"{PARTIAL}/{name}" for name in self._store.sizes(PARTIAL))

    def is_tidy(self) -> bool:
        return not self.notes()

    def finish(self) -> None:
        self._store.remove(PARTIAL)
