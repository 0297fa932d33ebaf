"""The rule that decides which checkpoints of a run to keep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from infra.configuration.options import key, require_at_least, setting
from infra.errors import require
from infra.urls import require_no_credentials


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints of a run to keep, and where to copy them; train.checkpoint_every_* sets how often to save.

    Args:
        keep_last: number of newest whole checkpoints to keep; all if not given
        keep_every_epochs: also keep the first checkpoint after each multiple of this many epochs
        mirror: URL of a folder in an object store, such as s3://BUCKET/RUN, for copies of the kept checkpoints; a run
            resumes from it if its own folder has no checkpoint as new
    """

    keep_last: int | None = None
    keep_every_epochs: int | None = None
    mirror: str | None = None

    def __post_init__(self) -> None:
        require_no_credentials(self.mirror or "", key(self, "mirror"))
        for name in ("keep_last", "keep_every_epochs"):
            require_at_least(self, name, 1, "leave it out for all")
        require(
            self.keep_every_epochs is None or self.keep_last is not None,
            f"{setting(self, 'keep_every_epochs')} has no effect if all checkpoints are kept; "
            f"set {key(self, 'keep_last')} too",
        )


def superseded(
    config: CheckpointConfig,
    steps: Sequence[int],
    *,
    is_whole: Callable[[int], bool],
    epoch_of: Callable[[int], float | None],
) -> list[int]:
    """Return the steps of the checkpoints to remove.

    Args:
        config: the rule
        steps: steps of all checkpoints, ascending
        is_whole: whether a step's checkpoint is whole; called for the newest, because damaged ones do not count
        epoch_of: epoch of a step's checkpoint; None if it cannot be read, and the next checkpoint replaces it
    """
    if config.keep_last is None:
        return []
    milestones = set(_milestones(config.keep_every_epochs, steps, epoch_of))
    missing = config.keep_last
    removable = []
    for step in reversed(steps):
        if missing:
            missing -= is_whole(step)
        elif step not in milestones:
            removable.append(step)
    return removable


def _milestones(every: int | None, steps: Sequence[int], epoch_of: Callable[[int], float | None]) -> Iterator[int]:
    """Yield the first step after each multiple of `every` epochs."""
    if every is None:
        return
    reached = 0
    for step in steps:
        epoch = epoch_of(step)
        multiple = reached if epoch is None else int(epoch) // every
        if multiple > reached:
            reached = multiple
            yield step
