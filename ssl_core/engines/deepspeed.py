"""One optimization step on all ranks with DeepSpeed, ZeRO stages 0 to 2 (Rajbhandari et al. 2020).

DeepSpeed averages the gradients, and from stage 1 on splits the optimizer among the ranks. Precision, loss scale and,
at stage 0, clipping are those of `Engine`, so that all engines compute the same.
"""

import atexit
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from infra.configuration.options import key, setting
from infra.errors import UserError, require
from infra.extras import require_extra
from ssl_core.engines.config import EngineConfig, EngineSetup
from ssl_core.engines.deepspeed_json import deepspeed_settings
from ssl_core.engines.engine import Engine
from ssl_core.model.encoder import Encoder

# ZeRO flattens the parameters and cuts them anywhere; these optimizers treat each number alone, so nothing changes.
_ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW)


class DeepSpeedEngine(Engine):
    """Each rank holds all weights; ZeRO stage 1 splits the optimizer among the ranks, stage 2 the gradients too.

    With more than one micro-batch, stages 0 and 1 average gradients once a step, stage 2 once a micro-batch, because a
    rank keeps only its own part of them.
    """

    def __init__(self, setup: EngineSetup, encoder: Encoder) -> None:
        config, settings = deepspeed_settings(setup.config, setup.precision, setup.global_batch)
        super().__init__(replace(setup, config=config), encoder)
        require(
            config.zero_stage == 0 or type(self.optimizer) in _ELEMENTWISE,
            f"{setting(config, 'zero_stage')} splits layers among the ranks, but {setting(setup.optim, 'name')} needs "
            f"the norm of each whole layer; use {key(config, 'zero_stage')}=0, or adam or adamw",
        )
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in self.optimizer.param_groups]
        self._deepspeed = _initialize(self.module, self.optimizer, settings, setup.device)
        self._deepspeed.communication_data_type = self.encoder.head.output.weight.dtype
        self._zero = self._deepspeed.optimizer if config.zero_stage else None
        if self._zero is None:
            # Only after `initialize`, which rejects this format; under ZeRO the weights are parts of one flat tensor.
            self.encoder.to(memory_format=torch.channels_last)

    @override
    def project(self, images: Sequence[Tensor], counted: Tensor | None, *, last: bool) -> Tensor:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        return self._deepspeed(*images, counted=counted)

    @override
    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        # `project` already decided whether DeepSpeed averages.
        if self._zero is not None:
            # ZeRO multiplies by it here and divides in its step.
            self._zero.override_loss_scale(float(self._scale.value) if self._scale else 1.0)
        elif self._scale:
            value = value * self._scale.value
        self._deepspeed.backward(value)

    @override
    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        return import_module("deepspeed.utils").safe_get_full_grad(parameter)

    @override
    def _step(self) -> Tensor:
        if self._zero is None:
            finite = self._finish_gradients()
            self._skip_unless(finite)
            self._deepspeed.step()
            return finite
        self._deepspeed.step()  # ZeRO itself divides by the loss scale, clips, and skips a step that is not finite
        self.gradient_norm = self._deepspeed.get_global_grad_norm()
        return torch.tensor(bool(self._deepspeed.was_step_applied()), device=self.device)

    @override
    def _drop_gradients(self) -> None:
        (self._deepspeed if self._zero is None else self._zero).zero_grad()

    @override
    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return super()._state_of(parameter) if self._zero is None else self._gathered[parameter]

    @override
    def optimizer_state(self) -> dict[str, Tensor]:
        if self._zero is not None:
            self._gathered = self._gather_states()
        try:
            return super().optimizer_state()
        finally:
            self._gathered = {}  # keeping it would waste the memory that ZeRO saves

    def _gather_states(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Join the ranks' parts of the optimizer's state.

        ZeRO lays a group's parameters end to end in one flat tensor; the optimizer on rank r owns part r.
        """
        states: dict[nn.Parameter, dict[str, Tensor]] = {p: {} for group in self._groups for p in group}
        for group, [flat] in zip(self._groups, self._flat_parameters(), strict=True):
            for entry, value in sorted(self.optimizer.state.get(flat, {}).items()):
                if value.dim() == 0:
                    pieces = [value] * len(group)
                else:
                    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
                    dist.all_gather(parts, value)
                    pieces = list(torch.split(torch.cat(parts)[: _numbers(group)], [p.numel() for p in group]))
                for parameter, piece in zip(group, pieces, strict=True):
                    states[parameter][entry] = (
                        piece.clone() if piece.dim() == 0 else piece.view(parameter.shape).clone()
                    )
        return states

    def _flat_parameters(self) -> list[list[Tensor]]:
        return [group["params"] for group in self.optimizer.param_groups]

    @override
    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        super().load(model, optimizer)
        if self._zero is not None:
            self._zero.refresh_fp32_params()  # the optimizer moves these; the encoder's are copies

    @override
    def _load_optimizer(self, states: dict[nn.Parameter, dict[str, Tensor]]) -> None:
        if self._zero is None:
            super()._load_optimizer(states)
            return
        for group, [flat] in zip(self._groups, self._flat_parameters(), strict=True):
            start = dist.get_rank() * flat.numel()
            mine: dict[str, Tensor] = {}
            for entry, value in states[group[0]].items():
                if value.dim() == 0:
                    mine[entry] = value.to(self.device, copy=True)
                    continue
                whole = torch.zeros(dist.get_world_size() * flat.numel(), dtype=flat.dtype, device=self.device)
                torch.cat([states[p][entry].to(whole).flatten() for p in group], out=whole[: _numbers(group)])
                mine[entry] = whole[start : start + flat.numel()].clone()
            self.optimizer.state[flat] = mine


def _numbers(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _is_no_skipped_step(record: logging.LogRecord) -> bool:
    """Filter out DeepSpeed's lines about skipped steps: `update` returns whether a step was skipped."""
    return "OVERFLOW! Skipping step" not in record.getMessage()


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], device: torch.device
) -> Any:
    """Return DeepSpeed's engine in the open process group, or in a new one of this process alone."""
    kind = key(EngineConfig, "kind")
    require_extra("deepspeed", f"{kind}=deepspeed", instead=f"use {kind}=ddp")
    # DeepSpeed's launcher sets these; torchrun and a plain start leave some of them out.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        atexit.register(dist.destroy_process_group)
    deepspeed = import_module("deepspeed")
    # Disable DeepSpeed's all-reduce within one machine: compiling it takes half a minute or more at the first start,
    # and fails without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").addFilter(_is_no_skipped_step)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    except ValueError as error:  # includes pydantic's
        raise UserError(f"DeepSpeed rejects its configuration: {' '.join(str(error).split())}; see its docs") from error
    return engine
