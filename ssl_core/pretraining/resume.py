"""Resuming a run: the newest checkpoint, and which settings must not have changed since."""

import json
import re
from dataclasses import asdict, replace
from typing import Any, Final

import torch

from infra.configuration.options import key
from infra.errors import UserError
from infra.ranks.devices import has_bf16_matrix_units
from infra.ranks.processes import Ranks, on_first_rank
from sharding.reading.data_config import DataConfig
from ssl_core.checkpoints.checkpoint import Checkpoint
from ssl_core.checkpoints.computation import INIT, Computation
from ssl_core.checkpoints.mirror import Mirror, restore_from_mirror
from ssl_core.checkpoints.newest import newest_whole_checkpoint
from ssl_core.engines.deepspeed_json import deepspeed_settings
from ssl_core.engines.train_config import Precision
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.initial_weights import initial_sha256

# These settings may change between two starts of one run: its length and how it is executed, not its result. The
# location of the shards may change, because their content is compared; the length may not under a schedule that depends
# on it.
_FREE_TO_CHANGE: Final = re.compile(
    r"run_folder|executor|data\.(shards|fetch\..*|max_masked_percent)|loss\.executor|checkpoints\..*|log\..*"
    r"|engine\.(kind|zero_stage|deepspeed_config|compile|cuda_graphs)"
    r"|train\.(device|max_steps|checkpoint_every_(epochs|steps)|log_every_steps|log_samples|world_size|timeout_s|skips|rollbacks)"
)


def fixed_settings(config: PretrainConfig) -> dict[str, Any]:
    """Return the settings that determine the result and must not change when a run resumes.

    Returns:
        JSON values by flat key. engine.max_gradient_norm is the one in effect, which a DeepSpeed JSON may set.
        model.init is the hash of the weights, wherever they lie. train.precision=auto, which agrees with any
        precision, is left out.

    Raises:
        UserError: if that JSON or those weights cannot be read
    """
    fixed = {name: value for name, value in flat(asdict(config)).items() if not _FREE_TO_CHANGE.fullmatch(name)}
    if config.optim.schedule == "constant":
        del fixed["train.epochs"]
    if config.train.precision == "auto":
        del fixed["train.precision"]
    settings = dict(json.loads(json.dumps(fixed)))  # as a checkpoint returns them: lists instead of tuples
    settings[INIT] = initial_sha256(config)
    if config.engine.kind == "deepspeed":
        engine, _ = deepspeed_settings(config.engine, config.train.precision, config.data.global_batch)
        settings["engine.max_gradient_norm"] = engine.max_gradient_norm
    return settings


def computation_of(config: PretrainConfig, data_identity: str) -> Computation:
    """Return what a run computes, to compare it with what the run of a checkpoint or a mirror does."""
    plain = PretrainConfig(config.run_folder, DataConfig(config.data.shards))
    return Computation(fixed_settings(config), data_identity, fixed_settings(plain))


def recipe_of(config: PretrainConfig, data_identity: str) -> dict[str, Any]:
    """Return what two runs of one recipe have in common: the fixed settings but the seed, and the shards' content."""
    settings = {name: value for name, value in fixed_settings(config).items() if name != "seed"}
    return settings | {"data.identity": data_identity}


def open_mirror(config: PretrainConfig, data_identity: str, ranks: Ranks) -> Mirror | None:
    """Open the mirror of the run on the first rank; None without one, and on the other ranks. Collective.

    Raises:
        UserError: on all ranks, if checkpoints.mirror cannot be opened
    """
    url, opened = config.checkpoints.mirror, list[Mirror]()
    if url:
        computation = computation_of(config, data_identity)
        on_first_rank(ranks, lambda: opened.append(Mirror(url, config.run_folder, computation)))
    return opened[0] if opened else None


def checkpoint_to_resume(
    config: PretrainConfig, data_identity: str, ranks: Ranks, mirror: Mirror | None
) -> Checkpoint | None:
    """Return the newest whole checkpoint of the run, from its folder or its mirror; None for a new run. Collective.

    Args:
        config: the run
        data_identity: identity of the shards' content
        ranks: this process among all
        mirror: the mirror of the run, on the first rank

    Raises:
        UserError: if the checkpoint comes from other data, or from other settings that determine the result, or if
            another run owns the mirror
        RunFailed: if there are checkpoints, but none is whole
    """
    run = config.run_folder

    def restore() -> None:
        if mirror:
            restore_from_mirror(run, mirror)

    on_first_rank(ranks, restore)
    # One rank of each machine verifies the bytes, so that 64 ranks do not hash the same gigabyte.
    checkpoint = newest_whole_checkpoint(run, speak=ranks.is_first, verify=ranks.local_rank == 0)
    if checkpoint is None:
        return None
    now = computation_of(config, data_identity)
    if difference := now.difference(checkpoint.state.computation):
        raise UserError(
            f"{difference.what} of the run in {run}; {difference.remedy} to resume it, or {_another_run(config)}"
        )
    return checkpoint


def settled(config: PretrainConfig, device: torch.device, checkpoint: Checkpoint | None) -> PretrainConfig:
    """Return the configuration with the precision that train.precision=auto stands for.

    Args:
        config: the run
        device: the device of this rank
        checkpoint: where the run goes on, whose precision it keeps on other machines too
    """
    if config.train.precision != "auto":
        return config
    fastest: Precision = "bf16" if has_bf16_matrix_units(device) else "fp16" if device.type == "cuda" else "fp32"
    precision: Precision = checkpoint.state.config["train.precision"] if checkpoint else fastest
    return replace(config, train=replace(config.train, precision=precision))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by flat key, such as `train.epochs`."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def _another_run(config: PretrainConfig) -> str:
    mirror = key(config.checkpoints, "mirror")
    return "another run folder" + (f" and another {mirror}" if config.checkpoints.mirror else "")
