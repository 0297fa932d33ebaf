"""The checkpoint that all ranks resume from."""

from pathlib import Path

from infra.errors import RunFailed, require
from infra.log import say
from infra.ranks.processes import gather_objects
from ssl_core.checkpoints.checkpoint import Checkpoint, find_damage, named_checkpoints, other_version


def newest_whole_checkpoint(run: Path, *, speak: bool = True, verify: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint that is whole on every rank, or None if the run has no checkpoints. Collective.

    A damaged checkpoint is skipped with a warning.

    Args:
        run: the run folder
        speak: whether this rank prints the warnings
        verify: whether this rank reads the bytes; ranks that share a disk may leave that to one of them

    Raises:
        UserError: on all ranks, if the newest checkpoint belongs to another version
        RunFailed: on all ranks, if no checkpoint is whole, ranks see different checkpoints, or the folder is unreadable
    """
    candidates = _common_candidates(run)
    verdict = ""
    while candidates:
        checkpoint = candidates.pop()
        for version in gather_objects(other_version(checkpoint) if verify else None):
            require(version is None, f"{checkpoint.path} is {version}; use that version, or another run folder")
        verdicts = gather_objects(find_damage(checkpoint) if verify else None)
        damage = {rank: str(problem) for rank, problem in enumerate(verdicts) if problem}
        if not damage:
            return checkpoint
        verdict = f"{checkpoint.path} is damaged ({_by_rank(damage)})"
        if speak:
            fallback = "falling back to the previous checkpoint" if candidates else "no checkpoint is left"
            say(f"warning: {verdict}; {fallback}")
    if verdict:  # people must decide to start from scratch: an unreadable disk may be repaired
        raise RunFailed(
            f"no checkpoint in {run / 'checkpoints'} is whole: {verdict}; repair the disk, or remove that folder to "
            "start from scratch"
        )
    return None


def _common_candidates(run: Path) -> list[Checkpoint]:
    """Return everything with the name of a checkpoint, oldest first, if all ranks see the same."""
    gather_objects(None)  # no rank looks before all are here: the first rank may only just have finished a save
    candidates: list[Checkpoint] = []
    try:
        candidates = named_checkpoints(run)
        seen: list[int] | str = [checkpoint.step for checkpoint in candidates]
    except RunFailed as error:
        seen = str(error)
    lists = gather_objects(seen)
    if any(other != lists[0] for other in lists):  # a network disk may list another machine's files late
        raise RunFailed(
            f"the list of checkpoints in {run} differs between ranks: {lists}; all ranks must share this disk; if they "
            "do, start again"
        )
    if isinstance(seen, str):
        raise RunFailed(seen)
    return candidates


def _by_rank(problems: dict[int, str]) -> str:
    """Join the ranks' problems, or return the problem if it is the same on all of them."""
    if len(set(problems.values())) == 1:
        return str(next(iter(problems.values())))
    return "; ".join(f"rank {rank}: {problem}" for rank, problem in problems.items())
