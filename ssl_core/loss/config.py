"""The settings of the loss."""

import math
from dataclasses import dataclass
from typing import Literal

from infra.configuration.options import setting
from infra.errors import require

SamePatient = Literal["negative", "masked", "positive"]
ExecutorName = Literal["auto", "dense", "tiled", "triton"]


@dataclass(frozen=True)
class LossConfig:
    """The NT-Xent loss.

    Args:
        temperature: tau, the divisor of cosine similarities; 0.5 in the paper
        same_patient: role of another image of the same patient: negative (the paper's loss), masked (neither positive
            nor negative), or positive (if of the same study, otherwise masked)
        executor: implementation of the sums over all pairs, with the same result: dense, tiled, triton (GPUs), or auto
            (by device and size)
        decoupled: whether positives are left out of the denominator (decoupled contrastive loss, Yeh et al. 2022)
    """

    temperature: float = 0.5
    same_patient: SamePatient = "negative"
    executor: ExecutorName = "auto"
    decoupled: bool = False

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"{setting(self, 'temperature')} must be positive and finite; the paper uses 0.5",
        )
