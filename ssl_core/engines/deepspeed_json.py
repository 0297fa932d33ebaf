"""A DeepSpeed JSON file beside our own keys: what it may say, and that the two say the same."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from infra.errors import UserError, require
from ssl_core.engines.engine import EngineConfig, Precision

# How gradients travel and what is logged. Everything else would change what is computed, or has a key of ours.
_PASSED_ON: Final = (
    *("prescale_gradients", "gradient_predivide_factor"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler"),
    *("tensorboard", "csv_monitor", "wandb"),
)
_PASSED_ON_OF_ZERO: Final = (
    *("reduce_bucket_size", "allgather_bucket_size"),
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions"),
)
_OURS: Final = {
    "optimizer": "the optimiser is set by optim.name",
    "scheduler": "the schedule is set by optim.schedule and optim.warmup_steps",
    "train_micro_batch_size_per_gpu": "how much a rank computes at once is set by train.micro_batches",
    "torch_autocast": "the precision is set by train.precision",
    "amp": "the precision is set by train.precision",
}
_AUTO: Final = "auto"  # the usual word, also in other trainers, for "as the caller says"


def deepspeed_settings(
    config: EngineConfig, precision: Precision, global_batch: int | None
) -> tuple[EngineConfig, dict[str, Any]]:
    """Merge `config` with the JSON that it names; returns it with nothing left open, and what DeepSpeed is given.

    Raises UserError for a file that cannot be read, and for a setting that contradicts ours or is not passed on.
    """
    given = _read(config.deepspeed_config) if config.deepspeed_config else {}
    given = {key: value for key, value in given.items() if value != _AUTO}
    zero = given.pop("zero_optimization", {})
    _require(isinstance(zero, dict), config, "zero_optimization", zero, "must be an object", "mend it")
    zero = {key: value for key, value in zero.items() if value != _AUTO}

    stage = zero.pop("stage", config.zero_stage or 0)
    _require(
        type(stage) is int and stage in (0, 1, 2),
        config,
        "zero_optimization.stage",
        stage,
        "must be 0, 1 or 2: stage 3 splits the weights, which pays for models far larger than these",
        "take 0",
    )
    _require_same(config, "zero_optimization.stage", stage, "engine.zero_stage", config.zero_stage)
    for key, value in zero.items():
        _require(key in _PASSED_ON_OF_ZERO, config, f"zero_optimization.{key}", value, "is not passed on", "remove it")

    norm = given.pop("gradient_clipping", config.max_gradient_norm)
    number = norm is None or (type(norm) in (int, float) and 0 <= norm < math.inf)
    _require(number, config, "gradient_clipping", norm, "must be a number, 0 for no clipping", "take 1.0")
    _require_same(config, "gradient_clipping", norm, "engine.max_gradient_norm", config.max_gradient_norm)
    norm = norm or None
    _require_same(config, "train_batch_size", given.pop("train_batch_size", None), "data.global_batch", global_batch)
    steps = given.pop("gradient_accumulation_steps", 1)
    _require(
        steps == 1,
        config,
        "gradient_accumulation_steps",
        steps,
        "must be 1, since its micro-batches would not share their negatives",
        "set train.micro_batches, which keeps those of the whole global batch",
    )
    for name in ("bf16", "fp16"):
        _require_precision(config, name, given.pop(name, None), precision)
    for key, value in given.items():
        rule = _OURS.get(key, "is not passed on")
        _require(key in _PASSED_ON, config, key, value, rule, "remove it")
    return replace(config, zero_stage=stage, max_gradient_norm=norm), {
        "steps_per_print": None,
        **given,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": norm if norm and stage else 0.0,  # at stage 0 we clip
        "zero_optimization": {"reduce_bucket_size": 2**25, "allgather_bucket_size": 2**25, **zero, "stage": stage},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"engine.deepspeed_config={path} cannot be read as JSON: {error}; mend it, or leave it out"
        ) from error
    require(isinstance(given, dict), f"engine.deepspeed_config={path} must hold one JSON object; see DeepSpeed's docs")
    return dict(given)


def _require(holds: bool, config: EngineConfig, key: str, value: object, rule: str, way_out: str) -> None:
    require(holds, f"{key}={json.dumps(value)} in {config.deepspeed_config} {rule}; {way_out}")


def _require_same(config: EngineConfig, key: str, value: object, ours: str, our_value: object) -> None:
    """Require that a key of theirs, where it is given, says what ours says; ours may be silent, but for the batch."""
    _require(
        value is None or value == our_value or (our_value is None and ours.startswith("engine.")),
        config,
        key,
        value,
        f"contradicts {ours}={our_value}",
        "remove one of the two",
    )


def _require_precision(config: EngineConfig, name: str, section: object, precision: Precision) -> None:
    if section is None:
        return
    _require(isinstance(section, dict), config, name, section, "must be an object", "mend it")
    assert isinstance(section, dict)
    enabled = section.get("enabled", False)
    _require(
        enabled in (_AUTO, precision == name),
        config,
        f"{name}.enabled",
        enabled,
        f"contradicts train.precision={precision}",
        "remove it, since train.precision says it",
    )
    for key, value in section.items():
        rule = "is not passed on: the loss is scaled by a rule of our own, the same for both engines"
        _require(key == "enabled" or value == _AUTO, config, f"{name}.{key}", value, rule, "remove it")
