"""Which checkpoints of a run are kept, and where else."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from infra.errors import require


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints of a run are kept, and where else.

    Args:
        keep_last: so many of the newest whole checkpoints; all without it
        keep_every_epochs: beside them, the first checkpoint after each multiple of so many epochs
        mirror: URL of a folder in an object store, such as s3://BUCKET/RUN, that gets a copy of what is kept, and from
            which a run goes on whose own folder has nothing as new
    """

    keep_last: int | None = None
    keep_every_epochs: int | None = None
    mirror: str | None = None

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_every_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"checkpoints.{name}={value} must be at least 1; leave it out for all")
        require(
            self.keep_every_epochs is None or self.keep_last is not None,
            f"checkpoints.keep_every_epochs={self.keep_every_epochs} has no effect while all are kept; "
            "give checkpoints.keep_last too",
        )


def superseded(
    config: CheckpointConfig,
    steps: Sequence[int],
    *,
    is_whole: Callable[[int], bool],
    epoch_of: Callable[[int], float | None],
) -> list[int]:
    """Return the steps whose checkpoints need not be kept.

    steps: those of all checkpoints, ascending. is_whole: asked of the newest; damaged ones do not count among those to
    keep. epoch_of: None where it cannot be read; the next checkpoint then stands in.
    """
    if config.keep_last is None:
        return []
    milestones = set(_milestones(config.keep_every_epochs, steps, epoch_of))
    missing = config.keep_last
    found = []
    for step in reversed(steps):
        if missing:
            missing -= is_whole(step)
        elif step not in milestones:
            found.append(step)
    return found


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
