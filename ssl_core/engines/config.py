"""The settings of an engine."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from infra.configuration.options import key, setting
from infra.errors import require
from ssl_core.engines.train_config import Precision
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.optimizer import OptimConfig


@dataclass(frozen=True)
class EngineConfig:
    """How the ranks share the work of a step.

    Args:
        kind: library that averages the gradients: ddp (PyTorch's DistributedDataParallel) or deepspeed
        zero_stage: what DeepSpeed splits among the ranks: 0 nothing, 1 the optimizer's state, 2 also the gradients; 0
            unless deepspeed_config sets it
        deepspeed_config: a DeepSpeed JSON file with further settings, such as bucket sizes
        max_gradient_norm: clip the gradient over all parameters to this length
        compile: compile the backbone with torch.compile
        cuda_graphs: launch the compiled backbone as CUDA graphs, one launch instead of hundreds; for one process on a
            GPU whose steps are short, without micro-batches
        average_in: type in which ddp's gradients travel between the ranks; bf16 halves the bytes and keeps 8 bits, for
            slow networks between machines
    """

    kind: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: Literal[0, 1, 2] | None = None
    deepspeed_config: Path | None = None
    max_gradient_norm: float | None = None
    compile: bool = False
    cuda_graphs: bool = False
    average_in: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("zero_stage", "deepspeed_config"):
            require(
                self.kind == "deepspeed" or getattr(self, name) is None,
                f"{setting(self, name)} needs {key(self, 'kind')}=deepspeed, not {self.kind}; change one of the two",
            )
        require(
            self.kind == "ddp" or self.average_in == "fp32",
            f"{setting(self, 'average_in')} needs {key(self, 'kind')}=ddp, not {self.kind}; change one of the two",
        )
        for name, fits, needed in (("compile", self.compile, "true"), ("kind", self.kind == "ddp", "ddp")):
            require(
                fits or not self.cuda_graphs,
                f"{key(self, 'cuda_graphs')}=true needs {key(self, name)}={needed}; change one of the two",
            )
        norm = self.max_gradient_norm
        require(
            norm is None or 0 < norm < math.inf,
            f"{setting(self, 'max_gradient_norm')} must be positive and finite; leave it out for no clipping",
        )


@dataclass(frozen=True)
class EngineSetup:
    """Everything that determines an engine besides the encoder.

    Attributes:
        config: how the ranks share the work
        optim: the optimizer
        loss: the contrastive loss
        precision: type of the forward and backward pass
        device: this rank's device
        micro_batches: parts into which each rank cuts its share (`gradient_cache`)
        global_batch: samples of a step on all ranks, to compare with `train_batch_size` of a DeepSpeed JSON
    """

    config: EngineConfig
    optim: OptimConfig
    loss: LossConfig
    precision: Precision
    device: torch.device
    micro_batches: int = 1
    global_batch: int | None = None
