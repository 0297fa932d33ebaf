"""One optimisation step on all ranks with PyTorch's DistributedDataParallel."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infra.processes import world_size
from ssl_core.loss.ntxent import Contrast, nt_xent
from ssl_core.model import Encoder
from ssl_core.norm import normalise_globally
from ssl_core.optim import OptimConfig, build_optimizer

Precision = Literal["bf16", "fp32"]

# Batch norm sees the global batch, so its buffers are equal on all ranks without broadcasting them at every step;
# torch 2.15 renamed the switch.
_KEEP_BUFFERS: Final[dict[str, Any]] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


class DDPEngine:
    """The encoder and its optimiser on this rank's device, stepped in unison with those of the other ranks.

    A step contrasts the projections of all ranks and normalises over the images of all ranks, so that it is the step
    that one process would make with the whole global batch.
    """

    def __init__(
        self, encoder: Encoder, optim: OptimConfig, temperature: float, precision: Precision, device: torch.device
    ) -> None:
        self.device = device
        self.encoder = normalise_globally(encoder, device).to(device).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(optim, self.encoder)
        self._temperature = temperature
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._parallel: nn.Module = self.encoder
        if world_size() > 1:
            self._parallel = DistributedDataParallel(self.encoder, gradient_as_bucket_view=True, **_KEEP_BUFFERS)

    def step(self, views: Sequence[Tensor], learning_rate: float) -> Contrast:
        """Make one optimisation step with this rank's share of the global batch.

        views: the two views, (n, 1, H, W) each. Returns the global loss before the step.
        """
        images = torch.cat(list(views)).to(self.device, memory_format=torch.channels_last)  # (2n, 1, H, W)
        self._parallel.train()
        with torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            first, second = self._parallel(images).chunk(2)
        contrast = nt_xent(first, second, self._temperature)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        contrast.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return Contrast(contrast.loss.detach(), contrast.top1)

    def model_state(self) -> dict[str, Tensor]:
        """Return parameters and buffers by the names that `Encoder` gives them."""
        state: dict[str, Tensor] = self.encoder.state_dict()
        return state

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return Adam's moments and step counts as `PARAMETER/exp_avg` and so on, free of torch's numbering."""
        state = self.optimizer.state
        return {
            f"{name}/{kind}": value
            for name, parameter in self.encoder.named_parameters()
            for kind, value in state[parameter].items()
        }

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Take over what `model_state` and `optimizer_state` returned, at any world size."""
        self.encoder.load_state_dict(model)
        for name, parameter in self.encoder.named_parameters():
            prefix = f"{name}/"
            moments = {key.removeprefix(prefix): value for key, value in optimizer.items() if key.startswith(prefix)}
            # Adam keeps its moments in the parameter's memory format and its step count on the CPU or with them.
            self.optimizer.state[parameter] = {
                kind: value.to(parameter) if value.dim() == 0 else torch.empty_like(parameter).copy_(value)
                for kind, value in moments.items()
            }
