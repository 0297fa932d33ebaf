"""Reader of a DeepSpeed JSON file, whose settings must be supported and agree with Sternum's options."""

import json
import math
from dataclasses import replace
from typing import Any, Final, Literal

from infra.configuration.options import key, setting
from infra.errors import UserError, require
from infra.storage.json_files import BadJson, read_json
from sharding.reading.data_config import DataConfig
from ssl_core.engines.config import EngineConfig
from ssl_core.engines.train_config import PrecisionChoice, TrainConfig
from ssl_core.model.optimizer import OptimConfig

# Communication of gradients, and reports on standard output. All other settings would change the result, have an option
# of ours, or write files outside the run folder.
_PASSED_ON: Final = (
    *("prescale_gradients", "gradient_predivide_factor"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger"),
)
_PASSED_ON_OF_ZERO: Final = (
    *("reduce_bucket_size", "allgather_bucket_size"),
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions"),
)
_WRITERS: Final = ("tensorboard", "csv_monitor", "wandb", "comet", "flops_profiler")  # of files, or to a server
_UNSUPPORTED: Final = "is not supported"
_AUTO: Final = "auto"  # the usual value, also in other trainers, for "as the caller sets it"


def deepspeed_settings(
    config: EngineConfig, precision: PrecisionChoice, global_batch: int | None
) -> tuple[EngineConfig, dict[str, Any]]:
    """Merge `config` with the JSON file that it names.

    Args:
        config: may name a file, whose settings fill those that `config` leaves out
        precision: precision of the run
        global_batch: samples of a step on all ranks, to compare with `train_batch_size`

    Returns:
        `config` with `zero_stage` set and the clipping in effect, and the settings for DeepSpeed.

    Raises:
        UserError: if the file cannot be read, or a setting contradicts ours or is not supported
    """
    given = _read(config) if config.deepspeed_config else {}
    given = {name: value for name, value in given.items() if value != _AUTO}
    zero = given.pop("zero_optimization", {})
    _require(isinstance(zero, dict), config, "zero_optimization", zero, "must be an object", "correct it")
    zero = {name: value for name, value in zero.items() if value != _AUTO}

    stage = _zero_stage(config, zero)
    norm = _gradient_norm(config, given)
    batch = given.pop("train_batch_size", None)
    _require_equal(config, "train_batch_size", batch, key(DataConfig, "global_batch"), global_batch)
    steps = given.pop("gradient_accumulation_steps", 1)
    _require(
        steps == 1,
        config,
        "gradient_accumulation_steps",
        steps,
        "must be 1, because DeepSpeed's micro-batches would not share their negatives",
        f"use {key(TrainConfig, 'micro_batches')}, which keeps the negatives of the whole global batch",
    )
    for name in ("bf16", "fp16"):
        _require_precision(config, name, given.pop(name, None), precision)
    for name, value in given.items():
        _require(name in _PASSED_ON, config, name, value, _why_not(name), "remove it")
    return replace(config, zero_stage=stage, max_gradient_norm=norm), {
        "steps_per_print": None,
        **given,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": norm if norm and stage else 0.0,  # at stage 0, `Engine` clips
        "zero_optimization": {"reduce_bucket_size": 2**25, "allgather_bucket_size": 2**25, **zero, "stage": stage},
    }


def _zero_stage(config: EngineConfig, zero: dict[str, Any]) -> Literal[0, 1, 2]:
    """Take the stage out of the section `zero_optimization`, and check what remains of it."""
    stage = zero.pop("stage", config.zero_stage or 0)
    _require(
        type(stage) is int and stage in (0, 1, 2),
        config,
        "zero_optimization.stage",
        stage,
        "must be 0, 1 or 2: stage 3 splits the weights, which only pays for much larger models",
        "use 0",
    )
    _require_same(config, "zero_optimization.stage", stage, key(config, "zero_stage"), config.zero_stage)
    for name, value in zero.items():
        _require(name in _PASSED_ON_OF_ZERO, config, f"zero_optimization.{name}", value, _UNSUPPORTED, "remove it")
    return stage


def _gradient_norm(config: EngineConfig, given: dict[str, Any]) -> float | None:
    """Take the largest length of the gradient out of the settings; None for no clipping."""
    norm = given.pop("gradient_clipping", config.max_gradient_norm)
    number = norm is None or (type(norm) in (int, float) and 0 <= norm < math.inf)
    _require(number, config, "gradient_clipping", norm, "must be a number, 0 for no clipping", "use 1.0")
    _require_same(config, "gradient_clipping", norm, key(config, "max_gradient_norm"), config.max_gradient_norm)
    return norm or None


def _why_not(name: str) -> str:
    """Return why a section of the JSON is not passed on."""
    options = {
        "optimizer": key(OptimConfig, "name"),
        "scheduler": f"{key(OptimConfig, 'schedule')} and {key(OptimConfig, 'warmup_steps')}",
        "train_micro_batch_size_per_gpu": key(TrainConfig, "micro_batches"),
        "torch_autocast": key(TrainConfig, "precision"),
        "amp": key(TrainConfig, "precision"),
    }
    if name in options:
        return f"{_UNSUPPORTED}, because {options[name]} sets it"
    if name in _WRITERS:
        return f"{_UNSUPPORTED}, because it would write or send files elsewhere; the run folder holds the metrics"
    return _UNSUPPORTED


def _read(config: EngineConfig) -> dict[str, Any]:
    assert config.deepspeed_config is not None
    shown = setting(config, "deepspeed_config")
    try:
        return read_json(config.deepspeed_config, dict[str, Any])
    except FileNotFoundError as error:
        raise UserError(f"{shown} does not exist; correct the path, or leave it out") from error
    except BadJson as error:
        raise UserError(f"{shown} is not a JSON object: {error}; correct the file, or leave it out") from error


def _require(holds: bool, config: EngineConfig, name: str, value: object, rule: str, way_out: str) -> None:
    require(holds, f"{name}={json.dumps(value)} in {config.deepspeed_config} {rule}; {way_out}")


def _require_same(config: EngineConfig, name: str, value: object, option: str, ours: object) -> None:
    """Require that a setting of the JSON, if given, agrees with our option, if that is set."""
    if ours is not None:
        _require_equal(config, name, value, option, ours)


def _require_equal(config: EngineConfig, name: str, value: object, option: str, ours: object) -> None:
    """Require that a setting of the JSON, if given, equals that of our option."""
    rule = f"contradicts {option}={ours}"
    _require(value is None or value == ours, config, name, value, rule, "remove one of the two")


def _require_precision(config: EngineConfig, name: str, section: object, precision: PrecisionChoice) -> None:
    if section is None:
        return
    _require(isinstance(section, dict), config, name, section, "must be an object", "correct it")
    assert isinstance(section, dict)
    enabled = section.get("enabled", False)
    _require(
        enabled in (_AUTO, precision == name) or precision == _AUTO,
        config,
        f"{name}.enabled",
        enabled,
        f"contradicts {key(TrainConfig, 'precision')}={precision}",
        "remove it",
    )
    for field, value in section.items():
        rule = "is not supported, because Sternum scales the loss itself, by one rule for both engines"
        _require(field == "enabled" or value == _AUTO, config, f"{name}.{field}", value, rule, "remove it")
