"""What an engine is asked for, and how it is configured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from infra.errors import require
from ssl_core.loss.ntxent import Identities, LossReport

Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class EngineConfig:
    """How a step is spread over the ranks.

    Args:
        kind: ddp (PyTorch's DistributedDataParallel) or deepspeed
        zero_stage: what DeepSpeed splits among the ranks: 0 nothing, 1 the optimiser's state, 2 its gradients too; 0
            unless deepspeed_config says otherwise
        deepspeed_config: a DeepSpeed JSON file with settings of its own, such as bucket sizes
        max_gradient_norm: gradients longer than this, over all parameters, are shortened to it
        compile: compile the backbone with torch.compile
    """

    kind: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: Literal[0, 1, 2] | None = None
    deepspeed_config: Path | None = None
    max_gradient_norm: float | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("zero_stage", "deepspeed_config"):
            value = getattr(self, name)
            require(
                self.kind == "deepspeed" or value is None,
                f"engine.{name}={value} is DeepSpeed's, but engine.kind={self.kind}; take engine.kind=deepspeed, or "
                f"leave engine.{name} out",
            )
        norm = self.max_gradient_norm
        require(
            norm is None or 0 < norm < math.inf,
            f"engine.max_gradient_norm={norm} must be positive and finite; leave it out for no clipping",
        )


class Engine(Protocol):
    """The encoder and its optimiser on this rank's device, stepped in unison with those of the other ranks.

    A step contrasts the projections of all ranks and normalises over the images of all ranks, so that it is the step
    that one process would make with the whole global batch. Every method is collective.
    """

    device: torch.device

    def backward(self, views: Sequence[Tensor], identities: Identities | None = None) -> LossReport:
        """Leave the gradient of the global loss in place of an older one, and return what the loss says.

        views: this rank's share of the two views, (n, 1, H, W) each; identities: of its n samples. n may differ
        between ranks, and be 0. Raises UserError on all ranks as `contrast_gradients` does.
        """

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient that `backward` left, by the names that `Encoder` gives its parameters."""

    def update(self, learning_rate: float) -> bool:
        """Make the step and drop the gradient; returns False, on all ranks, when it was not finite and nothing changed.

        In fp16 that happens now and then, until the loss is scaled by what the gradients bear.
        """

    def model_state(self) -> dict[str, Tensor]:
        """Return parameters and buffers by the names that `Encoder` gives them."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors as `PARAMETER/exp_avg` and so on, the same for every engine and world size.

        In fp16 the scale of the loss stands beside them, as `loss_scale/...`.
        """

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Take over what `model_state` and `optimizer_state` of any engine returned, at any world size."""
