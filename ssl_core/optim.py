"""The optimiser and its learning rate over the run (Gazda et al. 2021, section V A: Adam, 0.0005)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from infra.errors import require


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its schedule.

    Args:
        learning_rate: the highest learning rate of the run; the paper's is 0.0005
        weight_decay: L2 penalty of Adam; the paper names none
        schedule: constant as in the paper, or cosine, which falls to zero at the end of the run
        warmup_steps: steps over which the learning rate rises linearly from zero
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0,
            f"optim.learning_rate={self.learning_rate} must be positive; the paper uses 0.0005",
        )
        require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay} must not be negative; use 0")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must not be negative; use 0")


def learning_rate_at(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step (0 is the first) in a run of `total_steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Adam:
    """Return Adam over all parameters of `model`, in the order in which the model names them."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
