"""Going on with a run: what has to be as it was, and where it stands."""

import json
import re
from dataclasses import asdict
from typing import Any, Final

from infra import config as configuration
from infra.errors import UserError
from infra.processes import Ranks, on_first_rank
from ssl_core.checkpoints.checkpoint import Checkpoint
from ssl_core.checkpoints.mirror import restore_from_mirror
from ssl_core.checkpoints.newest import newest_whole_checkpoint
from ssl_core.engines.deepspeed_json import deepspeed_settings

# What may change between two starts of one run: its length and how it is executed, not what it computes. Where the
# shards lie is free, since their content is compared; the length is not under a schedule that depends on it.
_FREE_TO_CHANGE: Final = re.compile(
    r"run_folder|executor|data\.(shards|fetch\..*|max_masked_percent)|loss\.executor|checkpoints\..*"
    r"|engine\.(kind|zero_stage|deepspeed_config|compile)"
    r"|train\.(max_steps|checkpoint_every_(epochs|steps)|log_every_steps|log_samples|world_size|timeout_s|skips|rollbacks)"
)


def what_computes(config: Any) -> dict[str, Any]:
    """Return what has to stay as it is while a run goes on: flat keys of its configuration, with JSON values.

    engine.max_gradient_norm is the one in force, which a DeepSpeed JSON may set. Raises UserError for such a file that
    cannot be read.
    """
    found = _not_free(config)
    if config.engine.kind == "deepspeed":
        engine, _ = deepspeed_settings(config.engine, config.train.precision, config.data.global_batch)
        found["engine.max_gradient_norm"] = engine.max_gradient_norm
    return found


def newest_checkpoint(config: Any, data_identity: str, ranks: Ranks) -> Checkpoint | None:
    """Return the newest checkpoint of a run that is whole, here or in its mirror; None where there is none. Collective.

    Raises UserError when it was trained on other bytes than those of `data_identity`, or by a configuration that
    computes something else.
    """
    run, mirror = config.run_folder, config.checkpoints.mirror
    if mirror:
        on_first_rank(ranks, lambda: restore_from_mirror(run, mirror))
    # One rank of each machine reads it through, so that 64 ranks do not hash the same gigabyte.
    checkpoint = newest_whole_checkpoint(run, speak=ranks.is_first, verify=ranks.local_rank == 0)
    if checkpoint is None:
        return None
    if checkpoint.state.config is None:
        on_first_rank(ranks, lambda: _require_same_as_written(config))
    else:
        _require_same(config, what_computes(config), checkpoint.state.config)
    if checkpoint.state.data_identity != data_identity:
        raise UserError(
            f"data.shards hold other bytes than those that the run in {run} was trained on; "
            f"name the same shards to resume it, or {_elsewhere(config)}"
        )
    return checkpoint


def _not_free(config: Any) -> dict[str, Any]:
    found = {key: value for key, value in _flat(asdict(config)).items() if not _FREE_TO_CHANGE.fullmatch(key)}
    if config.optim.schedule == "constant":
        del found["train.epochs"]
    return dict(json.loads(json.dumps(found)))  # a tuple would not be equal to the list that it is read back as


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _require_same_as_written(config: Any) -> None:
    """Compare with the run's config.yaml, for checkpoints that are too old to hold a configuration."""
    path = config.run_folder / "config.yaml"
    if path.exists():
        _require_same(config, _not_free(config), _not_free(configuration.load(type(config), path)))


def _require_same(config: Any, now: dict[str, Any], before: dict[str, Any]) -> None:
    """Raise UserError for the first key that differs; one that only one side has is of another version of Sternum."""
    for key, value in now.items():
        if key in before and value != before[key]:
            raise UserError(
                f"{key}={value} differs from {before[key]} of the run in {config.run_folder}; "
                f"take {key}={before[key]} to resume it, or {_elsewhere(config)}"
            )


def _elsewhere(config: Any) -> str:
    return "another run folder" + (" and another checkpoints.mirror" if config.checkpoints.mirror else "")
