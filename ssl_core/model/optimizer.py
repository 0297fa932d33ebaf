"""The optimiser and its learning rate over the run (Gazda et al. 2021, section V A: Adam, 0.0005)."""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from infra.errors import require
from ssl_core.model.lars import LARS

REFERENCE_BATCH: Final = 256  # samples; the global batch that a scaled learning rate is stated for (Goyal et al. 2017)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule.

    Args:
        name: adam as in the paper; adamw, whose decay is not part of the gradient; lars, for batches of thousands
        learning_rate: the highest learning rate of the run; the paper's is 0.0005
        batch_scaling: none; or learning_rate is stated for a global batch B of 256, and multiplied by B / 256 (linear)
            or its square root (sqrt)
        weight_decay: L2 penalty of adam, for all parameters, or the decay of adamw and lars, which leave biases and
            norms out; the paper names none
        schedule: constant as in the paper, or cosine, which falls to zero at the end of the run
        warmup_steps: steps over which the learning rate rises linearly from zero
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
            f"optim.learning_rate={self.learning_rate} must be positive and finite; the paper uses 0.0005",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"optim.weight_decay={self.weight_decay} must be finite and not negative; use 0",
        )
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must not be negative; use 0")


def base_rate(config: OptimConfig, global_batch: int) -> float:
    """Return the highest learning rate of a run with this global batch (Chen et al. 2020, appendix B.1)."""
    times = global_batch / REFERENCE_BATCH
    factors = {"none": 1.0, "linear": times, "sqrt": math.sqrt(times)}
    return config.learning_rate * factors[config.batch_scaling]


def learning_rate_at(config: OptimConfig, step: int, total_steps: int, global_batch: int) -> float:
    """Return the learning rate of a step (0 is the first) in a run of `total_steps`.

    Raises UserError when the warm-up does not end within the run.
    """
    require(
        config.warmup_steps < total_steps,
        f"optim.warmup_steps={config.warmup_steps} must be below the {total_steps} steps of the run; "
        f"try {total_steps // 10}, or raise train.epochs",
    )
    highest = base_rate(config, global_batch)
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return highest
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    return highest * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters of `model`; its learning rate is set anew at every step.

    Its state is tensors only, by parameter: Adam's and AdamW's `step`, `exp_avg`, `exp_avg_sq`, LARS's
    `momentum_buffer`.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    if config.name == "adamw":
        return torch.optim.AdamW(_groups(model, decay, {}), lr=rate, fused=True)
    return LARS(_groups(model, decay, {"adapted": False}), lr=rate)


def _groups(model: nn.Module, weight_decay: float, spared: dict[str, Any]) -> list[dict[str, Any]]:
    """Part the weights, which decay, from biases and norms, which do not and get the options in `spared`.

    Biases and norms are the parameters with one dimension, in the order in which the model names them.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0, **spared}]
    return [group for group in groups if group["params"]]
