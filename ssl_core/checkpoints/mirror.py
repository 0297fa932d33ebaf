"""Copies of a run's checkpoints in an object store."""

from pathlib import Path

from infra.configuration.options import key
from infra.errors import RunFailed, require
from infra.log import say
from infra.storage.files import atomic_folder, require_space
from infra.storage.json_files import BadJson, decode_json
from infra.storage.object_store import ObjectStore
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
from ssl_core.checkpoints.computation import Computation
from ssl_core.checkpoints.ownership import Ownership
from ssl_core.checkpoints.retention import CheckpointConfig


class CopyDamaged(Exception):
    """A copy in the store differs from the checkpoint that was written; the message says where."""


class Mirror:
    """A folder of an object store with copies of one run's checkpoints.

    The manifest is copied last and removed first, so a copy with a manifest is complete. Every method raises RunFailed
    if the store cannot be reached, and those that change the store raise UserError if another run owns it.

    Attributes:
        name: the URL with its option, for messages
    """

    def __init__(self, url: str, run: Path, computation: Computation) -> None:
        """Open the store; a start of a run does so once.

        Args:
            url: the folder, such as s3://BUCKET/RUN
            run: the run folder
            computation: what the run computes

        Raises:
            UserError: if the URL does not name an object store, holds credentials, or needs a missing package
        """
        self._store = ObjectStore(url, key(CheckpointConfig, "mirror"))
        self.name = self._store.name
        self._ownership = Ownership(self._store, run, computation)
        self._manifests: dict[int, bytes | None] = {}  # of the copies, as last read or written
        self._epochs: dict[int, float | None] = {}

    def claim(self) -> None:
        """Make this start of the run the owner of the mirror, or check that it still is; see `Ownership`."""
        self._ownership.claim(self._newest_computation)

    def put(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint into the store; a copy of the same step is replaced."""
        self.remove(checkpoint.step)
        folder = _folder(checkpoint.step)
        manifest = (checkpoint.path / MANIFEST).read_bytes()
        for name in FILES:
            self._store.put(checkpoint.path / name, f"{folder}/{name}")
        self._store.put_bytes(manifest, f"{folder}/{MANIFEST}")
        self._manifests[checkpoint.step] = manifest

    def remove(self, step: int) -> None:
        """Remove the copy of a checkpoint, if there is one."""
        self.claim()
        self._manifests.pop(step, None)
        self._epochs.pop(step, None)
        self._store.remove(f"{_folder(step)}/{MANIFEST}")
        self._store.remove(_folder(step))

    def steps(self) -> list[int]:
        """Return the steps of the copies with a manifest, in ascending order."""
        return self.copies()[0]

    def copies(self) -> tuple[list[int], list[int]]:
        """Return the steps of the copies with a manifest, and of those that a killed process left without one.

        Both are in ascending order.
        """
        steps = [step for step in map(step_of, self._store.folders()) if step is not None]
        complete = sorted(step for step in steps if MANIFEST in self._store.sizes(_folder(step)))
        return complete, sorted(set(steps) - set(complete))

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Return whether the store has a copy of exactly this checkpoint.

        Compares the manifests; the one in the store is read once.
        """
        try:
            manifest = (checkpoint.path / MANIFEST).read_bytes()
        except OSError:
            return False
        if self._manifests.get(checkpoint.step) != manifest:
            self._manifests[checkpoint.step] = self._read(checkpoint.step, MANIFEST)
        return self._manifests[checkpoint.step] == manifest

    def epoch_of(self, step: int) -> float | None:
        """Return the epoch of a copy, None if it is damaged; it is read once."""
        if step not in self._epochs:
            state = self._state(step)
            self._epochs[step] = None if state is None else state.epoch
        return self._epochs[step]

    def fetch(self, run: Path, step: int) -> None:
        """Copy a checkpoint into the run folder; an older one of this step stays until the copy has been verified.

        Args:
            run: the run folder
            step: the step of the checkpoint

        Raises:
            CopyDamaged: if the copy is incomplete or damaged
            UserError: if it has another format version, or does not fit on the disk
        """
        path = checkpoint_path(run, step)
        sizes = self._store.sizes(_folder(step))
        missing = {*FILES, MANIFEST} - sizes.keys()
        if missing:
            raise CopyDamaged(f"{min(missing)} is missing")
        require_space(path, sum(sizes.values()))
        with atomic_folder(path) as folder:
            for name in (*FILES, MANIFEST):
                self._store.get(f"{_folder(step)}/{name}", folder / name)
            copy = Checkpoint(folder, step)
            version = other_version(copy)
            hint = f"use that version of Sternum, or another {key(CheckpointConfig, 'mirror')}"
            require(version is None, f"step-{step} in {self.name} is {version}; {hint}")
            damage = find_damage(copy)
            if damage:
                raise CopyDamaged(damage)

    def _newest_computation(self) -> Computation | None:
        states = (self._state(step) for step in reversed(self.steps()))
        return next((state.computation for state in states if state is not None), None)

    def _state(self, step: int) -> CheckpointState | None:
        """Return the state of a copy, None if it is damaged."""
        try:
            return decode_json(self._read(step, STATE) or b"", CheckpointState)
        except BadJson:
            return None

    def _read(self, step: int, name: str) -> bytes | None:
        return self._store.read(f"{_folder(step)}/{name}")


def restore_from_mirror(run: Path, mirror: Mirror) -> None:
    """Claim the mirror, and fetch its newest whole checkpoint unless the run folder has a whole one at least as new.

    Only one process calls this, before the ranks choose the checkpoint to resume. A damaged copy is skipped with a
    warning. So is a store that cannot be read, if the run folder has a whole checkpoint.

    Args:
        run: the run folder
        mirror: the mirror of the run

    Raises:
        RunFailed: if the run folder has no whole checkpoint and the store cannot be read, or holds only damaged copies
        UserError: if another run owns the mirror, before anything is fetched; or as `Mirror.fetch` raises it
    """
    whole = (checkpoint.step for checkpoint in reversed(named_checkpoints(run)) if find_damage(checkpoint) is None)
    local = next(whole, None)
    try:
        mirror.claim()
        _fetch_newer(mirror, run, -1 if local is None else local)
    except RunFailed as error:
        if local is None:
            raise
        say(f"warning: {error}; resuming from step {local}, the newest in {run}")


def _fetch_newer(mirror: Mirror, run: Path, local: int) -> None:
    """Fetch the newest whole checkpoint after step `local`, if there is one."""
    steps = mirror.steps()
    for step in reversed(steps):
        if step <= local:
            return
        try:
            mirror.fetch(run, step)
        except CopyDamaged as error:
            say(f"warning: step-{step} in {mirror.name} is damaged ({error}); trying the copy before it")
        else:
            say(f"copied step-{step} from {mirror.name} to {checkpoint_path(run, step)}")
            return
    if steps:
        raise RunFailed(
            f"{mirror.name} holds no whole checkpoint; repair it, or name another folder to start from step 0"
        )


def _folder(step: int) -> str:
    return f"step-{step}"
