"""A second place for a run's checkpoints: an object store, by fsspec."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fsspec.core import url_to_fs

from infra.errors import RunFailed, UserError, require
from infra.files import atomic_folder, remove_folder
from infra.log import say
from ssl_core.checkpoint import FILES, MANIFEST, Checkpoint, checkpoint_path, damage, named_checkpoints, step_of

_SCHEMES: Final = ("s3://", "gs://", "file://", "memory://")


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

    def put(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint into the store, in the place of one of the same step."""
        self.remove(checkpoint.step)
        folder = self._folder(checkpoint.step)
        with self._errors("written"):
            self._store.makedirs(folder, exist_ok=True)
            for name in (*FILES, MANIFEST):
                self._store.put_file(str(checkpoint.path / name), f"{folder}/{name}")

    def remove(self, step: int) -> None:
        """Remove the copy of a checkpoint, if there is one."""
        folder = self._folder(step)
        with self._errors("tidied up"):
            if self._store.exists(f"{folder}/{MANIFEST}"):
                self._store.rm_file(f"{folder}/{MANIFEST}")
            if self._store.exists(folder):
                self._store.rm(folder, recursive=True)

    def steps(self) -> list[int]:
        """Return the steps of the copies with a manifest, in ascending order."""
        with self._errors("listed"):
            self._store.invalidate_cache()  # another process may have written since
            names = self._store.glob(f"{self._path}/step-*/{MANIFEST}")
        return sorted(step for name in names if (step := step_of(name.split("/")[-2])) is not None)

    def fetch(self, run: Path, step: int) -> str | None:
        """Copy a checkpoint into the run folder, if it is whole; returns what is wrong with it otherwise."""
        path = checkpoint_path(run, step)
        with atomic_folder(path) as folder, self._errors("read"):
            for name in (*FILES, MANIFEST):
                self._store.get_file(f"{self._folder(step)}/{name}", str(folder / name))
        found = damage(Checkpoint(path, step))
        if found:
            remove_folder(path)
        return found

    def _folder(self, step: int) -> str:
        return f"{self._path}/step-{step}"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn whatever a store's client raises into one line."""
        try:
            yield
        except Exception as error:
            raise RunFailed(
                f"checkpoints.mirror={self._url} cannot be {what}: {type(error).__name__}: {error}; "
                "check address and credentials"
            ) from error


def restore_from_mirror(run: Path, url: str) -> None:
    """Fetch the newest whole checkpoint of the mirror, unless the run folder has a whole one as new.

    For one process, before the ranks choose the checkpoint they go on with. A damaged copy is passed over, with a
    warning. Raises RunFailed when the store cannot be read.
    """
    mirror = Mirror(url)
    whole = (checkpoint.step for checkpoint in reversed(named_checkpoints(run)) if damage(checkpoint) is None)
    local = next(whole, -1)
    for step in reversed(mirror.steps()):
        if step <= local:
            return
        found = mirror.fetch(run, step)
        if found is None:
            say(f"{checkpoint_path(run, step)} comes from {url}")
            return
        say(f"warning: step-{step} in {url} is damaged ({found}); looking at the one before it")
