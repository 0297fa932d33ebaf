"""Where shards go: a local folder, or through fsspec an object store.

A file takes its place as a whole. While a packing has not ended, notes about it lie in `OUT/.partial/`: so it can be
taken up again, from another machine too where OUT is an object store.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from fsspec.core import url_to_fs

from infra.errors import RunFailed, UserError, require
from infra.files import disk_errors, fsync_path, locked, sha256_file
from sharding.format.manifest import PARTIAL, Shard

_WRITING: Final = "writing"


class Destination(Protocol):
    """A place for shards.

    Attributes:
        workplace: the local folder for files that are being written; it exists while the destination is held.
    """

    workplace: Path

    def held(self) -> AbstractContextManager[None]:
        """Make the workplace and keep other processes out of it.

        When the block raises, what is half-written goes, and everything if nothing has taken its place yet.
        """

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file here, notes left out."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None when there is none."""

    def take(self, file: Path, name: str) -> None:
        """Move a file from the workplace to its place."""

    def holds(self, shard: Shard) -> bool:
        """Say whether a shard and its index stand here as they were written."""

    def notes(self) -> list[str]:
        """Return the names of the notes."""

    def is_tidy(self) -> bool:
        """Say whether nothing is here of a packing that did not end."""

    def finish(self) -> None:
        """Remove notes and workplace."""


def destination(out: str | Path) -> Destination:
    """Return the place that `out` names: a URL such as s3://BUCKET/FOLDER, or else a local folder.

    Raises UserError when it is a file, or a URL that fsspec cannot open here.
    """
    return _ObjectStore(out) if isinstance(out, str) and "://" in out else _Folder(Path(out))


class _Folder:
    """A local folder; the workplace lies in it, so that a file takes its place by being renamed."""

    def __init__(self, path: Path) -> None:
        require(not path.is_file(), f"out={path} is a file; choose another folder")
        self._path = path.resolve()
        self._partial = self._path / PARTIAL
        self.workplace = self._partial / _WRITING

    @contextmanager
    def held(self) -> Iterator[None]:
        existed = self._path.exists()
        with locked(self._partial, f"packing into {self._path}"), disk_errors(self._path):
            shutil.rmtree(self.workplace, ignore_errors=True)
            self.workplace.mkdir()
            try:
                yield
            except BaseException:
                shutil.rmtree(self.workplace, ignore_errors=True)
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
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def take(self, file: Path, name: str) -> None:
        place = self._path / name
        fsync_path(file)
        file.replace(place)
        fsync_path(place.parent)

    def holds(self, shard: Shard) -> bool:
        try:
            shard_sha256, index_sha256 = (sha256_file(self._path / name) for name in (shard.name, shard.index_name))
        except OSError:
            return False
        return (shard_sha256, index_sha256) == (shard.sha256, shard.index_sha256)

    def notes(self) -> list[str]:
        return sorted(f"{PARTIAL}/{path.name}" for path in self._partial.glob("*.json"))

    def is_tidy(self) -> bool:
        return not self._partial.exists()

    def finish(self) -> None:
        shutil.rmtree(self._partial)
        fsync_path(self._path)


class _ObjectStore:
    """A folder of an object store; each shard is written to a local temporary folder first and then uploaded.

    An object store has no lock: only processes of one user on one machine are kept apart. Two that pack the same
    dataset with the same options from two machines write the same bytes.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._store, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"out={url} cannot be opened: {error}; or choose a local folder") from error
        self._path = path.rstrip("/")
        # The same for the same user and URL, so that what a killed process left is found and removed.
        name = f"sternum-{os.getuid()}-{sha256(url.encode()).hexdigest()[:16]}"
        self._local = Path(tempfile.gettempdir()) / name
        self.workplace = self._local / _WRITING

    @contextmanager
    def held(self) -> Iterator[None]:
        with disk_errors(self._local):
            self._local.mkdir(mode=0o700, exist_ok=True)
        with locked(self._local, f"packing into {self._url}"), disk_errors(self._local):
            try:
                shutil.rmtree(self.workplace, ignore_errors=True)
                self.workplace.mkdir()
                yield
            except BaseException:
                with suppress(Exception):  # what is raised already matters more
                    if not self.sizes():
                        self.finish()
                raise
            finally:
                shutil.rmtree(self._local, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        return {name: size for name, size in self._list(self._path).items() if name != PARTIAL}

    def read(self, name: str) -> bytes | None:
        with self._errors("read"):
            try:
                content: bytes = self._store.cat_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return None
            return content

    def take(self, file: Path, name: str) -> None:
        with self._errors("written"):
            self._store.makedirs(f"{self._path}/{name}".rpartition("/")[0], exist_ok=True)
            self._store.put_file(str(file), f"{self._path}/{name}")
        file.unlink()

    def holds(self, shard: Shard) -> bool:
        sizes = self.sizes()
        return sizes.get(shard.name) == shard.size_bytes and shard.index_name in sizes

    def notes(self) -> list[str]:
        return sorted(f"{PARTIAL}/{name}" for name in self._list(f"{self._path}/{PARTIAL}"))

    def is_tidy(self) -> bool:
        return not self.notes()

    def finish(self) -> None:
        with self._errors("tidied up"):
            if self._store.exists(f"{self._path}/{PARTIAL}"):
                self._store.rm(f"{self._path}/{PARTIAL}", recursive=True)

    def _list(self, path: str) -> dict[str, int]:
        with self._errors("listed"):
            try:
                self._store.invalidate_cache()  # another process may have written since
                entries = self._store.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            names = [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries]
            return {name: entry["size"] or 0 for name, entry in names if name}

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn whatever a store's client raises into one line."""
        try:
            yield
        except Exception as error:
            raise RunFailed(
                f"{self._url} cannot be {what}: {type(error).__name__}: {error}; "
                "check address and credentials, the same command goes on from there"
            ) from error
