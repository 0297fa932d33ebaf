"""The checkpoint that all ranks resume from."""

from pathlib import Path

from infra.errors import RunFailed, require
from infra.log import say
from infra.processes import gather_objects
from ssl_core.checkpoints.checkpoint import Checkpoint, find_damage, named_checkpoints, other_version


def newest_whole_checkpoint(run: Path, *, speak: bool = True, verify: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint that is whole on every rank, or None when the run has none at all.

    A damaged one is passed over, with a warning on the rank that may `speak`. Ranks that see one disk need not all
    read it: those that do not `verify` take over the others' verdict. Collective: every rank of the run has to call
    it. Raises on all ranks: UserError for one of another version, RunFailed when none is whole, when ranks do not see
    the same ones, or when they cannot look.
    """
    candidates = _common_candidates(run)
    verdict = ""
    while candidates:
        checkpoint = candidates.pop()
        for version in gather_objects(other_version(checkpoint) if verify else None):
            require(version is None, f"{checkpoint.path} is {version}; take that Sternum, or another run folder")
        verdicts = gather_objects(find_damage(checkpoint) if verify else None)
        found = {rank: what for rank, what in enumerate(verdicts) if what}
        if not found:
            return checkpoint
        verdict = f"{checkpoint.path} is damaged ({_by_rank(found)})"
        if speak:
            say(f"warning: {verdict}; {'falling back to the checkpoint before it' if candidates else 'none is left'}")
    if verdict:  # to begin anew is for people to decide: an unreadable disk may be mended
        raise RunFailed(
            f"no checkpoint in {run / 'checkpoints'} is whole: {verdict}; mend the disk, or remove that folder to "
            "begin anew"
        )
    return None


def _common_candidates(run: Path) -> list[Checkpoint]:
    """Return what stands under the name of a checkpoint, oldest first, once all ranks see the same."""
    gather_objects(None)  # nobody looks before all are here: the first rank may have finished a save just now
    candidates: list[Checkpoint] = []
    try:
        candidates = named_checkpoints(run)
        seen: list[int] | str = [checkpoint.step for checkpoint in candidates]
    except RunFailed as error:
        seen = str(error)
    lists = gather_objects(seen)
    if any(other != lists[0] for other in lists):  # a network disk may list late what another machine has written
        raise RunFailed(
            f"the list of checkpoints in {run} differs between ranks: {lists}; it has to lie on a disk that all ranks "
            "share; if it does, start again"
        )
    if isinstance(seen, str):
        raise RunFailed(seen)
    return candidates


def _by_rank(found: dict[int, object]) -> str:
    """Say what ranks found, once when it is one thing."""
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return "; ".join(f"rank {rank}: {what}" for rank, what in found.items())
