"""One optimisation step on all ranks with PyTorch's DistributedDataParallel."""

from contextlib import nullcontext
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infra.processes import world_size
from ssl_core.engines.engine import EngineConfig, Precision
from ssl_core.engines.replica import Replica
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import OptimConfig

# Batch norm sees the global batch, so its buffers are equal on all ranks without broadcasting them at every step;
# torch 2.15 renamed the switch.
_KEEP_BUFFERS: Final[dict[str, Any]] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


class DDPEngine(Replica):
    """Each rank holds everything; gradients are averaged while the last micro-batch's are computed."""

    def __init__(
        self,
        config: EngineConfig,
        encoder: Encoder,
        optim: OptimConfig,
        loss: LossConfig,
        precision: Precision,
        device: torch.device,
        micro_batches: int,
    ) -> None:
        super().__init__(config, encoder, optim, loss, precision, device, micro_batches)
        self.encoder.to(memory_format=torch.channels_last)
        self._parallel: DistributedDataParallel | None = None
        if world_size() > 1:
            self._parallel = DistributedDataParallel(self.module, gradient_as_bucket_view=True, **_KEEP_BUFFERS)

    def project(self, images: Tensor, *, last: bool) -> Tensor:
        """As `Projector`."""
        if self._parallel is None:
            projections: Tensor = self.module(images)
            return projections
        with nullcontext() if last else self._parallel.no_sync():
            projections = self._parallel(images)
            return projections

    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        """As `Projector`: whether DDP averages, it has learned in `project`."""
        (value * self._scale.value if self._scale else value).backward()  # type: ignore[no-untyped-call]

    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None, "the loss depends on every parameter"
        return parameter.grad

    def _step(self) -> bool:
        finite = self._finish_gradients()
        if finite:
            self.optimizer.step()
        return finite

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad()
