"""The optimizer and its learning rate schedule (Gazda et al. 2021, section V A: Adam, 0.0005)."""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from infra.configuration.options import key, require_at_least, setting
from infra.errors import require
from ssl_core.model.lars import LARS

_LEAST_LARS_RATE: Final = 0.01  # with momentum 0.9 and trust 0.001, at most 0.01 % of a weight in a step
REFERENCE_BATCH: Final = 256  # samples; global batch for which a scaled learning rate is given (Goyal et al. 2017)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate schedule.

    Args:
        name: adam as in the paper; adamw, with decay separate from the gradient; lars, for batches of thousands
        learning_rate: highest learning rate of the run; 0.0005 in the paper, for adam; lars needs about 0.3
        batch_scaling: factor of learning_rate for a global batch B: none, linear (B / 256), or sqrt (its square root)
        weight_decay: L2 penalty of adam for all parameters, or decay of adamw and lars without biases and norms; not
            given in the paper
        schedule: constant as in the paper, or cosine, which falls to zero at the end of the run
        warmup_steps: steps during which the learning rate rises linearly from zero
    """

    name: Literal["adam", "adamw", "lars"] = "adam"
    learning_rate: float = 5e-4
    batch_scaling: Literal["none", "linear", "sqrt"] = "none"
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.learning_rate < math.inf,
            f"{setting(self, 'learning_rate')} must be positive and finite; the paper uses 0.0005",
        )
        require(
            self.name != "lars" or self.learning_rate >= _LEAST_LARS_RATE,
            f"{setting(self, 'learning_rate')} is a rate for adam: with {setting(self, 'name')} weights would move by "
            f"at most {self.learning_rate:g} % in a step, and the run would learn nothing; use 0.3 with "
            f"{key(self, 'batch_scaling')}=linear",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"{setting(self, 'weight_decay')} must be finite and not negative; use 0",
        )
        require_at_least(self, "warmup_steps", 0, "use 0")


def base_rate(config: OptimConfig, global_batch: int) -> float:
    """Return the highest learning rate of a run with this global batch (Chen et al. 2020, appendix B.1)."""
    ratio = global_batch / REFERENCE_BATCH
    factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
    return config.learning_rate * factors[config.batch_scaling]


def learning_rate_at(config: OptimConfig, step: int, total_steps: int, global_batch: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: the schedule
        step: number of the step; 0 is the first
        total_steps: steps of the run
        global_batch: samples of a step on all ranks

    Raises:
        UserError: if the warm-up is not shorter than the run
    """
    require(
        config.warmup_steps < total_steps,
        f"{setting(config, 'warmup_steps')} must be below the {total_steps} steps of the run; "
        f"try {total_steps // 10}, or more epochs",
    )
    highest = base_rate(config, global_batch)
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return highest
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    return highest * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over all parameters of a model; the caller sets its learning rate at every step.

    Args:
        config: which optimizer, and its weight decay
        model: the model

    Returns:
        The optimizer. The state of each parameter consists of tensors: `step`, `exp_avg`, `exp_avg_sq` of Adam and
        AdamW, `momentum_buffer` of LARS.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    if config.name == "adamw":
        return torch.optim.AdamW(_groups(model, decay, {}), lr=rate, fused=True)
    return LARS(_groups(model, decay, {"adapted": False}), lr=rate)


def _groups(model: nn.Module, weight_decay: float, without_decay: dict[str, Any]) -> list[dict[str, Any]]:
    """Split the parameters into weights, which decay, and biases and norms, which get the options in `without_decay`.

    Biases and norms are the parameters with one dimension. Both groups keep the model's order.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0, **without_decay},
    ]
    return [group for group in groups if group["params"]]
