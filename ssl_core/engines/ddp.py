"""One optimization step on all ranks with PyTorch's DistributedDataParallel."""

from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from infra.ranks.processes import world_size
from ssl_core.engines.config import EngineSetup
from ssl_core.engines.engine import Engine
from ssl_core.model.encoder import Encoder

# Batch norm sees the global batch, so its buffers are equal on all ranks without a broadcast at every step;
# torch 2.15 renamed the switch.
_KEEP_BUFFERS: Final[dict[str, Any]] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)
# Gradients of a bucket travel while the backward pass computes the next one; the last bucket's travel afterwards. So
# small buckets are better until their latency adds up to the backward pass; docs/gpu.md has the numbers.
_BUCKET_MB: Final = 25


class _InOrder(nn.Module):
    """The encoder under autocast; without images a value whose gradient is zero and reaches the last parameter first.

    DDP lays out its buckets anew after its first backward pass, in the order in which that one reached the parameters.
    An all-reduce adds up the ranks in another order in each part of a bucket. So without a pass before all others, the
    first step of a resumed run would round otherwise than the same step of an unbroken one, on more than two ranks.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, *images: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return what the encoder returns, or without images zero."""
        if images:
            return self._module(*images, counted=counted)
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0


class DDPEngine(Engine):
    """Each rank holds everything; gradients are averaged during the backward pass of the last micro-batch."""

    def __init__(self, setup: EngineSetup, encoder: Encoder) -> None:
        super().__init__(setup, encoder)
        self.encoder.to(memory_format=torch.channels_last)
        self._parallel: DistributedDataParallel | None = None
        if world_size() > 1:
            self._parallel = DistributedDataParallel(
                _InOrder(self.module), gradient_as_bucket_view=True, bucket_cap_mb=_BUCKET_MB, **_KEEP_BUFFERS
            )
            if setup.config.average_in == "bf16":
                self._parallel.register_comm_hook(None, bf16_compress_hook)
            self._parallel().backward()
            self.optimizer.zero_grad()

    @override
    def project(self, images: Sequence[Tensor], counted: Tensor | None, *, last: bool) -> Tensor:
        if self._parallel is None:
            return self.module(*images, counted=counted)
        with nullcontext() if last else self._parallel.no_sync():
            return self._parallel(*images, counted=counted)

    @override
    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        # `project` already decided whether DDP averages.
        (value * self._scale.value if self._scale else value).backward()  # type: ignore[no-untyped-call]

    @override
    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None, "the loss depends on every parameter"
        return parameter.grad

    @override
    def _step(self) -> Tensor:
        finite = self._finish_gradients()
        self._skip_unless(finite)
        self.optimizer.step()
        return finite

    @override
    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad()
