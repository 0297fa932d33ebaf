"""One optimisation step on all ranks with DeepSpeed, ZeRO stages 0 to 2 (Rajbhandari et al. 2020).

What DeepSpeed is used for is the averaging of gradients, and from stage 1 on the splitting of the optimiser among the
ranks. Precision, the scale of the loss and, at stage 0, the gradient's length are those of `Replica`, so that the
engines compute the same.
"""

import atexit
import logging
import os
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import UserError, require
from infra.extras import require_extra
from ssl_core.engines.deepspeed_json import deepspeed_settings
from ssl_core.engines.engine import EngineConfig, Precision
from ssl_core.engines.replica import Replica
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import OptimConfig

# ZeRO flattens the parameters and cuts them anywhere: these treat each number alone, so that changes nothing.
_ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW)


class DeepSpeedEngine(Replica):
    """Each rank holds all weights; the optimiser is split among the ranks from ZeRO stage 1 on, gradients from 2 on.

    With more than one micro-batch, stages 0 and 1 average gradients once a step, stage 2 once a micro-batch: it keeps
    only a rank's own part of them.
    """

    def __init__(
        self,
        config: EngineConfig,
        encoder: Encoder,
        optim: OptimConfig,
        loss: LossConfig,
        precision: Precision,
        device: torch.device,
        micro_batches: int,
        global_batch: int | None = None,
    ) -> None:
        config, settings = deepspeed_settings(config, precision, global_batch)
        super().__init__(config, encoder, optim, loss, precision, device, micro_batches)
        require(
            config.zero_stage == 0 or type(self.optimizer) in _ELEMENTWISE,
            f"engine.zero_stage={config.zero_stage} splits layers among the ranks, but optim.name={optim.name} needs "
            "the length of each; take engine.zero_stage=0, or adam or adamw",
        )
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in self.optimizer.param_groups]
        self._deepspeed = _initialize(self.module, self.optimizer, settings, device)
        self._deepspeed.communication_data_type = self.encoder.head.output.weight.dtype
        self._zero = self._deepspeed.optimizer if config.zero_stage else None
        if self._zero is None:
            # Before `initialize` that fails; under ZeRO the weights are parts of one flat tensor.
            self.encoder.to(memory_format=torch.channels_last)

    def project(self, images: Tensor, *, last: bool) -> Tensor:
        """As `Projector`."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        projections: Tensor = self._deepspeed(images)
        return projections

    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        """As `Projector`: whether DeepSpeed averages, it has learned in `project`."""
        scale = self._scale.value if self._scale else 1.0
        if self._zero is not None:
            self._zero.override_loss_scale(scale)  # by which it multiplies here, and divides in its step
        elif self._scale:
            value = value * scale
        self._deepspeed.backward(value)

    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        gradient: Tensor = import_module("deepspeed.utils").safe_get_full_grad(parameter)
        return gradient

    def _step(self) -> bool:
        # ZeRO undoes the loss's scale, clips, and finds what is not finite itself.
        if self._zero is None and not self._finish_gradients():
            return False
        self._deepspeed.step()
        return bool(self._deepspeed.was_step_applied())

    def _drop_gradients(self) -> None:
        (self._deepspeed if self._zero is None else self._zero).zero_grad()

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return super()._state_of(parameter) if self._zero is None else self._gathered[parameter]

    def optimizer_state(self) -> dict[str, Tensor]:
        """As `Engine`."""
        if self._zero is not None:
            self._gathered = self._gather_states()
        try:
            return super().optimizer_state()
        finally:
            self._gathered = {}  # holding it would undo what splitting it saves

    def _gather_states(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Put the ranks' parts of the optimiser's state together.

        ZeRO lays a group's parameters end to end in one flat tensor, of which the optimiser on rank r has part r.
        """
        states: dict[nn.Parameter, dict[str, Tensor]] = {p: {} for group in self._groups for p in group}
        for group, [flat] in zip(self._groups, self._flat_parameters(), strict=True):
            for kind, value in sorted(self.optimizer.state.get(flat, {}).items()):
                if value.dim() == 0:
                    pieces = [value] * len(group)
                else:
                    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
                    dist.all_gather(parts, value)
                    pieces = list(torch.split(torch.cat(parts)[: _numbers(group)], [p.numel() for p in group]))
                for parameter, piece in zip(group, pieces, strict=True):
                    states[parameter][kind] = piece.clone() if piece.dim() == 0 else piece.view(parameter.shape).clone()
        return states

    def _flat_parameters(self) -> list[list[Tensor]]:
        return [group["params"] for group in self.optimizer.param_groups]

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """As `Engine`."""
        super().load(model, optimizer)
        if self._zero is not None:
            self._zero.refresh_fp32_params()  # which the optimiser moves; the encoder's are copies of them

    def _load_optimizer(self, states: dict[nn.Parameter, dict[str, Tensor]]) -> None:
        if self._zero is None:
            super()._load_optimizer(states)
            return
        for group, [flat] in zip(self._groups, self._flat_parameters(), strict=True):
            start = dist.get_rank() * flat.numel()
            mine: dict[str, Tensor] = {}
            for kind, value in states[group[0]].items():
                if value.dim() == 0:
                    mine[kind] = value.to(self.device, copy=True)
                    continue
                whole = torch.zeros(dist.get_world_size() * flat.numel(), dtype=flat.dtype, device=self.device)
                torch.cat([states[p][kind].to(whole).flatten() for p in group], out=whole[: _numbers(group)])
                mine[kind] = whole[start : start + flat.numel()].clone()
            self.optimizer.state[flat] = mine


def _numbers(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _not_of_skipped_steps(record: logging.LogRecord) -> bool:
    """Whether a line of DeepSpeed's is about something that `update` does not return."""
    return "OVERFLOW! Skipping step" not in record.getMessage()


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], device: torch.device
) -> Any:
    """Return DeepSpeed's engine over the process group that is open, or over one of this process alone."""
    require_extra("deepspeed", "engine.kind=deepspeed", instead="take engine.kind=ddp")
    # What its launcher sets; torchrun and a plain start leave some of it open.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        atexit.register(dist.destroy_process_group)
    deepspeed = import_module("deepspeed")
    # An own all-reduce between the processes of one machine, which it would compile at the first start, for half a
    # minute and more, and fail without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").addFilter(_not_of_skipped_steps)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    except ValueError as error:  # pydantic's too
        raise UserError(f"DeepSpeed refuses its configuration: {' '.join(str(error).split())}; see its docs") from error
    return engine
