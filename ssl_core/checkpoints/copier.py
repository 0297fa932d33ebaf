"""Copies of a run's checkpoints in an object store, kept in line with its folder beside the training."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from infra.errors import RunFailed
from infra.files import remove_folder
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.checkpoints.retention import CheckpointConfig, superseded


class CheckpointCopier:
    """Keeps a mirror in line with a run's folder, in a thread of its own, so that a slow store holds up no save.

    What the store does to it in the background is an alarm; the next update does what was missed.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        mirror: Mirror,
        is_whole: Callable[[Checkpoint], bool],
        alarm: Callable[[str], None],
    ) -> None:
        """Begin to bring the mirror in line: an earlier process may have been killed before it had.

        is_whole: says whether a checkpoint is worth a copy. alarm: told of failures in the background.
        """
        self._run, self._config, self._mirror, self._is_whole, self._alarm = run, config, mirror, is_whole, alarm
        self._lock = Lock()
        self._held: Checkpoint | None = None  # the one that is being copied
        self._unwanted = False  # to be removed behind that
        self._written: set[int] = set()  # and not copied yet
        self._thread = ThreadPoolExecutor(1, "mirror")
        self.update()

    def update(self, written: int | None = None) -> None:
        """Bring the mirror in line in the background; written: the step of a checkpoint that is new."""
        if written is not None:
            self._written.add(written)
        self._newest: Future[None] = self._thread.submit(self._reconcile_in_background)

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()

    def require_done(self) -> None:
        """Raise RunFailed when the newest update failed."""
        self._newest.result()

    def remove(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint from the run's folder; one that is being copied, once it is."""
        with self._lock:
            if checkpoint == self._held:
                self._unwanted = True
            else:
                remove_folder(checkpoint.path)

    def reconcile(self) -> None:
        """Make the store hold every whole checkpoint of the folder, the newest first, and drop what nobody needs.

        That is: copies that retention drops when it looks at those in the store, and what is left of unfinished ones;
        neither if the folder has that checkpoint. So a folder that has only the newest, on a fresh machine, takes
        nothing away, nor does one that keeps all; and copies that are newer than the folder stay until they are old.
        Raises RunFailed.
        """
        try:
            while any(self._copy(checkpoint) for checkpoint in reversed(find_checkpoints(self._run))):
                pass  # by now there may be a newer one
        except OSError as error:
            raise RunFailed(f"a checkpoint in {self._run} cannot be mirrored: {error}; look after the disk") from error
        here = {checkpoint.step for checkpoint in find_checkpoints(self._run)}
        copies, unfinished = self._mirror.copies()
        old = superseded(self._config, copies, is_whole=lambda _: True, epoch_of=self._mirror.epoch_of)
        for step in {*old, *unfinished} - here:
            self._mirror.remove(step)

    def _reconcile_in_background(self) -> None:
        try:
            self.reconcile()
        except RunFailed as error:
            self._alarm(f"the mirror lacks what was saved, or holds what was removed: {error}")
            raise

    def _copy(self, checkpoint: Checkpoint) -> bool:
        """Copy a checkpoint, unless the store has it or it is not worth it; returns whether it was."""
        with self._holding(checkpoint) as exists:
            # What was written anew has a copy of before replaced, which may be damaged though its manifest is the same.
            new = exists and (checkpoint.step in self._written or not self._mirror.holds(checkpoint))
            if not new or not self._is_whole(checkpoint):
                return False
            self._mirror.put(checkpoint)
            self._written.discard(checkpoint.step)
        return True

    @contextmanager
    def _holding(self, checkpoint: Checkpoint) -> Iterator[bool]:
        """Keep `remove` from a checkpoint meanwhile; gives whether it is still there."""
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
