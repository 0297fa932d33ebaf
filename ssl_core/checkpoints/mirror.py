"""A second place for a run's checkpoints: an object store, by fsspec."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from fsspec.core import url_to_fs

from infra.errors import RunFailed, UserError, require
from infra.files import atomic_folder, require_space
from infra.log import say
from ssl_core.checkpoints.checkpoint import (
    FILES,
    MANIFEST,
    STATE,
    Checkpoint,
    CheckpointState,
    checkpoint_path,
    find_damage,
    named_checkpoints,
    other_version,
    step_of,
)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SCHEMES: Final = ("s3://", "gs://", "file://", "memory://")


class CopyDamaged(Exception):
    """A copy in the store is not what was written; says what differs."""


class Mirror:
    """A folder of an object store with copies of checkpoints.

    The manifest is copied last and removed first, so that a copy with a manifest is whole.
    """

    def __init__(self, url: str) -> None:
        """Open the store; raises UserError when `url` is not the address of one."""
        require(url.startswith(_SCHEMES), f"checkpoints.mirror={url} must begin with one of {', '.join(_SCHEMES)}")
        try:
            self._store, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"checkpoints.mirror={url} cannot be opened: {error}; correct it, or leave it out"
            ) from error
        self._url = url
        self._path = path.rstrip("/")
        self._manifests: dict[int, bytes | None] = {}  # what is known of the copies
        self._epochs: dict[int, float | None] = {}

    def put(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint into the store, in the place of one of the same step."""
        self.remove(checkpoint.step)
        folder = self._folder(checkpoint.step)
        manifest = (checkpoint.path / MANIFEST).read_bytes()
        with self._errors("written"):
            self._store.makedirs(folder, exist_ok=True)
            for name in FILES:
                self._store.put_file(str(checkpoint.path / name), f"{folder}/{name}")
            self._store.pipe_file(f"{folder}/{MANIFEST}", manifest)
        self._manifests[checkpoint.step] = manifest

    def remove(self, step: int) -> None:
        """Remove the copy of a checkpoint, if there is one."""
        folder = self._folder(step)
        self._manifests.pop(step, None)
        self._epochs.pop(step, None)
        with self._errors("tidied up"):
            if self._store.exists(f"{folder}/{MANIFEST}"):
                self._store.rm_file(f"{folder}/{MANIFEST}")
            if self._store.exists(folder):
                self._store.rm(folder, recursive=True)

    def steps(self) -> list[int]:
        """Return the steps of the copies with a manifest, in ascending order."""
        return self.copies()[0]

    def copies(self) -> tuple[list[int], list[int]]:
        """Return the steps of the copies with a manifest, and of those that a killed process left without one."""
        names: dict[int, set[str]] = {}
        with self._errors("listed"):
            self._store.invalidate_cache()  # another process may have written since
            paths = [path.split("/") for path in self._store.glob(f"{self._path}/step-*/*")]
        for path in paths:
            step = step_of(path[-2])
            if step is not None:
                names.setdefault(step, set()).add(path[-1])
        whole = sorted(step for step, found in names.items() if MANIFEST in found)
        return whole, sorted(names.keys() - set(whole))

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Say whether the store has this very checkpoint, by its manifest, which is read there once."""
        try:
            manifest = (checkpoint.path / MANIFEST).read_bytes()
        except OSError:
            return False
        if self._manifests.get(checkpoint.step) != manifest:
            self._manifests[checkpoint.step] = self._read(checkpoint.step, MANIFEST)
        return self._manifests[checkpoint.step] == manifest

    def epoch_of(self, step: int) -> float | None:
        """Return the epoch of a copy, None when it is damaged; it is read once."""
        if step not in self._epochs:
            try:
                self._epochs[step] = msgspec.json.decode(self._read(step, STATE) or b"", type=CheckpointState).epoch
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._epochs[step] = None
        return self._epochs[step]

    def _read(self, step: int, name: str) -> bytes | None:
        with self._errors("read"):
            try:
                return bytes(self._store.cat_file(f"{self._folder(step)}/{name}"))
            except FileNotFoundError:
                return None

    def fetch(self, run: Path, step: int) -> None:
        """Copy a checkpoint into the run folder, where what has its name stays until the copy is found to be whole.

        Raises CopyDamaged when it is not, UserError when it is of another version or does not fit the disk.
        """
        source, path = self._folder(step), checkpoint_path(run, step)
        with self._errors("read"):
            sizes = {entry["name"].split("/")[-1]: entry["size"] for entry in self._store.ls(source, detail=True)}
        missing = {*FILES, MANIFEST} - sizes.keys()
        if missing:
            raise CopyDamaged(f"{min(missing)} is missing")
        require_space(path, sum(sizes.values()))
        with atomic_folder(path) as folder:
            with self._errors("read"):
                for name in (*FILES, MANIFEST):
                    self._store.get_file(f"{source}/{name}", str(folder / name))
            copy = Checkpoint(folder, step)
            version = other_version(copy)
            way_out = "take that Sternum, or another checkpoints.mirror"
            require(version is None, f"step-{step} in {self._url} is {version}; {way_out}")
            found = find_damage(copy)
            if found:
                raise CopyDamaged(found)

    def _folder(self, step: int) -> str:
        return f"{self._path}/step-{step}"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn whatever a store's client raises into one line."""
        try:
            yield
        except Exception as error:
            if what == "read" and isinstance(error, OSError) and error.errno in _FULL:
                raise  # the disk that is copied to
            raise RunFailed(
                f"checkpoints.mirror={self._url} cannot be {what}: {type(error).__name__}: {error}; "
                "check address and credentials"
            ) from error


def restore_from_mirror(run: Path, url: str) -> None:
    """Fetch the newest whole checkpoint of the mirror, unless the run folder has a whole one as new.

    For one process, before the ranks choose the checkpoint they go on with. A damaged copy is passed over, with a
    warning, and so is a store that cannot be read where the run folder has a whole checkpoint. Raises RunFailed when it
    has none, and when there are copies but none is whole; UserError as `Mirror.fetch` does.
    """
    mirror = Mirror(url)
    whole = (checkpoint.step for checkpoint in reversed(named_checkpoints(run)) if find_damage(checkpoint) is None)
    local = next(whole, None)
    try:
        _fetch_newer(mirror, run, url, -1 if local is None else local)
    except RunFailed as error:
        if local is None:
            raise
        say(f"warning: {error}; going on from step {local}, the newest in {run}")


def _fetch_newer(mirror: Mirror, run: Path, url: str, local: int) -> None:
    """Fetch the newest whole checkpoint that is newer than step `local`, if there is one."""
    steps = mirror.steps()
    for step in reversed(steps):
        if step <= local:
            return
        try:
            mirror.fetch(run, step)
        except CopyDamaged as error:
            say(f"warning: step-{step} in {url} is damaged ({error}); looking at the one before it")
        else:
            say(f"{checkpoint_path(run, step)} comes from {url}")
            return
    if steps:
        raise RunFailed(
            f"no checkpoint in checkpoints.mirror={url} is whole; mend the store, or name another folder of it to "
            "begin anew"
        )
