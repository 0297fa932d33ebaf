"""Background copies of a run's checkpoints to an object store, kept in line with the run folder."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from infra.errors import RunFailed, UserError
from infra.storage.files import remove_folder
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.checkpoints.retention import CheckpointConfig, superseded


class CheckpointCopier:
    """Keeps a mirror in line with a run's folder, in a separate thread, so that a slow store delays no save.

    A failure in the background raises an alarm; the next update catches up.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        mirror: Mirror,
        is_whole: Callable[[Checkpoint], bool],
        alarm: Callable[[str], None],
    ) -> None:
        """Start a first update: an earlier process may have been killed before its last one.

        Args:
            run: the run folder
            config: which checkpoints to keep
            mirror: the object store
            is_whole: whether a checkpoint is whole; only whole ones are copied
            alarm: called with failures in the background
        """
        self._run, self._config, self._mirror, self._is_whole, self._alarm = run, config, mirror, is_whole, alarm
        self._lock = Lock()
        self._held: Checkpoint | None = None  # being copied now
        self._unwanted = False  # remove it after the copy
        self._written: set[int] = set()  # new or rewritten, and not copied yet
        self._thread = ThreadPoolExecutor(1, "mirror")
        self.update()

    def update(self, written: int | None = None) -> None:
        """Update the mirror in the background.

        Args:
            written: step of a new or rewritten checkpoint
        """
        if written is not None:
            self._written.add(written)
        self._newest: Future[None] = self._thread.submit(self._reconcile_in_background)

    def close(self) -> None:
        """Wait for the running update."""
        self._thread.shutdown()

    def require_done(self) -> None:
        """Raise RunFailed if the newest update failed, or UserError if the mirror belongs to another run."""
        self._newest.result()

    def remove(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint from the run folder; if it is being copied, remove it after the copy."""
        with self._lock:
            if checkpoint == self._held:
                self._unwanted = True
            else:
                remove_folder(checkpoint.path)

    def reconcile(self) -> None:
        """Copy every whole checkpoint of the folder, the newest first, and remove superseded and unfinished copies.

        Retention judges the copies in the store, and never removes the copy of a checkpoint in the folder. So a folder
        that has only the newest, on a fresh machine, removes nothing, nor does a run that keeps all; and copies newer
        than the folder stay until they are superseded.

        Raises:
            RunFailed: if the store or the disk fails
            UserError: if another run owns the mirror
        """
        try:
            while any(self._copy(checkpoint) for checkpoint in reversed(find_checkpoints(self._run))):
                pass  # a newer checkpoint may have appeared
        except OSError as error:
            raise RunFailed(
                f"a checkpoint in {self._run} cannot be copied to the mirror: {error}; check the disk"
            ) from error
        local_steps = {checkpoint.step for checkpoint in find_checkpoints(self._run)}
        copies, unfinished = self._mirror.copies()
        old = superseded(self._config, copies, is_whole=lambda _: True, epoch_of=self._mirror.epoch_of)
        for step in {*old, *unfinished} - local_steps:
            self._mirror.remove(step)

    def _reconcile_in_background(self) -> None:
        try:
            self.reconcile()
        except (RunFailed, UserError) as error:
            self._alarm(f"the mirror is out of date: {error}")
            raise

    def _copy(self, checkpoint: Checkpoint) -> bool:
        """Copy a checkpoint unless the store has it or it is damaged; return whether it was copied."""
        with self._holding(checkpoint) as exists:
            # Copy a rewritten step again: the old copy may be damaged even if its manifest matches.
            new = exists and (checkpoint.step in self._written or not self._mirror.holds(checkpoint))
            if not new or not self._is_whole(checkpoint):
                return False
            self._mirror.put(checkpoint)
            self._written.discard(checkpoint.step)
        return True

    @contextmanager
    def _holding(self, checkpoint: Checkpoint) -> Iterator[bool]:
        """Postpone `remove` of a checkpoint within the block; yield whether the checkpoint still exists."""
        with self._lock:
            self._held = checkpoint
            exists = checkpoint.path.exists()
        try:
            yield exists
        finally:
            with self._lock:
                unwanted, self._held, self._unwanted = self._unwanted, None, False
                if unwanted:
                    remove_folder(checkpoint.path)
