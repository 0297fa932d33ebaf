"""The options of fine-tuning."""

import math
from dataclasses import dataclass

from infra.configuration.options import require_at_least, setting
from infra.errors import require


@dataclass(frozen=True)
class FinetuneConfig:
    """Options for fine-tuning a backbone with labels.

    Args:
        epochs: passes over the development images without folds 0 and 1, which choose the epoch and the threshold; 0
            for no fine-tuning
        patience: epochs without a better AUC on fold 0 after which training ends; by default it never ends early
        learning_rate: AdamW's learning rate at the first step; it falls to zero along a cosine
        layer_decay: factor of the learning rate from each block of the backbone to the one before it; the head has
            learning_rate, the stem the least
        probe_first: start with the head of a linear probe that is fitted to the training images, instead of zeros
        weight_decay: AdamW's weight decay; biases and norms have none
        local_batch: images per step, at least 2
    """

    epochs: int = 0
    patience: int | None = None
    learning_rate: float = 1e-4
    layer_decay: float = 1.0
    probe_first: bool = False
    weight_decay: float = 0.05
    local_batch: int = 64

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        require_at_least(self, "epochs", 0, "try 10")
        require_at_least(self, "patience", 1, "try 3")
        require(
            0 < self.learning_rate < math.inf,
            f"{setting(self, 'learning_rate')} must be positive and finite; try 0.0001",
        )
        require(
            0 < self.layer_decay <= 1,
            f"{setting(self, 'layer_decay')} must be above 0 and at most 1; try 0.75, or 1 for one rate everywhere",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"{setting(self, 'weight_decay')} must be finite and not negative; try 0.05",
        )
        require_at_least(self, "local_batch", 2, "batch norm compares images; try 64")
