"""Going on with a run: what has to be as it was, and where it stands."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from infra import config as configuration
from infra.errors import UserError
from infra.processes import Ranks, on_first_rank
from ssl_core.checkpoint import Checkpoint, find_checkpoints, newest_whole_checkpoint
from ssl_core.checkpoint_mirror import restore_from_mirror

# What may change between two starts of one run: its length and how it is executed, not what it computes. Where the
# shards lie is free, since their content is compared; the length is not under a schedule that depends on it.
_FREE_TO_CHANGE: Final = re.compile(
    r"run_folder|executor|data\.(shards|fetch\..*|max_masked_percent)|engine\..*|loss\.executor|checkpoints\..*"
    r"|train\.(max_steps|checkpoint_every_(epochs|steps)|log_every_steps|log_samples|world_size|timeout_s|skips|rollbacks)"
)


def require_same_run(config: Any) -> None:
    """Raise UserError when the run in `config.run_folder` computes something else.

    One without a checkpoint may still be changed.
    """
    path = config.run_folder / "config.yaml"
    if not path.exists() or not find_checkpoints(config.run_folder):
        return
    before = _flat(asdict(configuration.load(type(config), path)))
    for key, value in _flat(asdict(config)).items():
        free = _FREE_TO_CHANGE.fullmatch(key) or (key, config.optim.schedule) == ("train.epochs", "constant")
        if value != before[key] and not free:
            raise UserError(
                f"{key}={value} differs from {before[key]} of the run in {config.run_folder}; "
                f"take {key}={before[key]} to resume it, or another run folder"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def newest_checkpoint(run: Path, mirror: str | None, data_identity: str, ranks: Ranks) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, None where there is none. Collective.

    mirror: where to look for one that is newer than those in the run's folder.

    Raises UserError when it was trained on other bytes than those of `data_identity`.
    """
    if mirror:
        on_first_rank(ranks, lambda: restore_from_mirror(run, mirror))
    # One rank of each machine reads it through, so that 64 ranks do not hash the same gigabyte.
    checkpoint = newest_whole_checkpoint(run, speak=ranks.is_first, verify=ranks.local_rank == 0)
    if checkpoint is not None and checkpoint.state.data_identity != data_identity:
        raise UserError(
            f"data.shards hold other bytes than those that the run in {run} was trained on; "
            "name the same shards to resume it, or another run folder"
        )
    return checkpoint
