"""What both engines do on each rank: precision, gradient, its scale and length, and the optimiser's state."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from infra.errors import RunFailed
from ssl_core.engines.engine import EngineConfig, Precision
from ssl_core.engines.gradient_cache import contrast_gradients
from ssl_core.loss.ntxent import Identities, LossConfig, LossReport
from ssl_core.model.batch_norm import synchronize_batch_norm
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import OptimConfig, build_optimizer

_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
_SCALE: Final = "loss_scale"  # stands where a parameter's name does in `optimizer_state`


class Projecting(nn.Module):
    """The encoder in its precision, for images on any device: (N, 1, H, W) -> (N, d).

    A module, and not a context around the engine's, since DeepSpeed switches an autocast around it off.
    """

    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        super().__init__()
        self.encoder = encoder
        self._dtype = _AUTOCAST[precision]

    def forward(self, images: Tensor) -> Tensor:
        """Return the projections, in the precision's type."""
        weight = self.encoder.head.output.weight
        images = images.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        with torch.autocast(weight.device.type, self._dtype, enabled=self._dtype is not None):
            projections: Tensor = self.encoder(images)
            return projections


@dataclass
class LossScale:
    """What the loss is multiplied by in fp16, so that small gradients do not vanish (Micikevicius et al. 2018).

    A power of two, so that dividing by it is exact: halved when gradients overflow, doubled after 2,000 steps without.
    """

    value: float = 1.0
    steps_since: int = 0

    def update(self, *, finite: bool) -> None:
        """Go on after a step whose gradients were finite, or not."""
        self.steps_since = self.steps_since + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.steps_since == 2000:
            self.value, self.steps_since = self.value * 2, 0

    def state(self) -> dict[str, Tensor]:
        """Return it as tensors."""
        values = {"value": self.value, "steps_since": float(self.steps_since)}
        return {f"{_SCALE}/{kind}": torch.tensor(value) for kind, value in values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned, if it is there."""
        if f"{_SCALE}/value" in state:
            self.value = state[f"{_SCALE}/value"].item()
            self.steps_since = int(state[f"{_SCALE}/steps_since"].item())


class Replica(ABC):
    """The encoder and its optimiser on this rank; subclasses join the ranks."""

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
        self.device = device
        synchronize_batch_norm(encoder, device)
        self.encoder = encoder.to(device).train()
        self.module: nn.Module = Projecting(self.encoder, precision)
        self.optimizer = build_optimizer(optim, self.encoder)
        self._scale = LossScale(2.0**16) if precision == "fp16" else None
        self._max_gradient_norm = config.max_gradient_norm
        self._loss = loss
        self._micro_batches = micro_batches
        self._has_gradients = False
        self._statistics_before: list[Tensor] = []  # batch norm's, in case that the step is not made
        if config.compile:
            self.encoder.backbone.compile()  # in place, so that the names of its state stay

    @abstractmethod
    def project(self, images: Tensor, *, last: bool) -> Tensor:
        """As `ssl_core.engines.gradient_cache.Projector`."""

    @abstractmethod
    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        """As `ssl_core.engines.gradient_cache.Projector`."""

    @abstractmethod
    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """Return what `backward` left for a parameter, whole; collective."""

    @abstractmethod
    def _step(self) -> bool:
        """Make the optimiser's step with the gradients of `backward`, unless they are not finite; returns whether."""

    @abstractmethod
    def _drop_gradients(self) -> None:
        """Forget the gradients of an earlier `backward`."""

    def backward(self, views: Sequence[Tensor], identities: Identities | None = None) -> LossReport:
        """As `Engine`."""
        self._forget_gradients()
        statistics = list(self.encoder.buffers())
        self._statistics_before = self._statistics_before or [torch.empty_like(values) for values in statistics]
        torch._foreach_copy_(self._statistics_before, statistics)
        try:
            contrast = contrast_gradients(self, views, identities, self._loss, self._micro_batches)
        except RunFailed:
            self._take_back_statistics()
            raise
        self._has_gradients = True
        return contrast

    def _forget_gradients(self) -> None:
        self._drop_gradients()
        self._has_gradients = False

    def gradients(self) -> dict[str, Tensor]:
        """As `Engine`."""
        if not self._has_gradients:
            return {}
        scale = self._scale.value if self._scale else 1.0
        return {name: self._gradient_of(parameter) / scale for name, parameter in self.encoder.named_parameters()}

    def _take_back_statistics(self) -> None:
        torch._foreach_copy_(list(self.encoder.buffers()), self._statistics_before)

    def update(self, learning_rate: float) -> bool:
        """As `Engine`."""
        assert self._has_gradients, "an update follows a backward"
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        finite = self._step()
        if not finite:
            self._take_back_statistics()
        if self._scale:
            self._scale.update(finite=finite)
        self._forget_gradients()
        return finite

    def model_state(self) -> dict[str, Tensor]:
        """As `Engine`."""
        state: dict[str, Tensor] = self.encoder.state_dict()
        return state

    def optimizer_state(self) -> dict[str, Tensor]:
        """As `Engine`."""
        scale = self._scale.state() if self._scale else {}
        return scale | {
            f"{name}/{kind}": value
            for name, parameter in self.encoder.named_parameters()
            for kind, value in self._state_of(parameter).items()
        }

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.optimizer.state.get(parameter, {})
        return state

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """As `Engine`."""
        self.encoder.load_state_dict(model)
        if self._scale:
            self._scale.load(optimizer)
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in optimizer.items():
            name, _, kind = key.rpartition("/")
            by_name.setdefault(name, {})[kind] = value
        self._load_optimizer({p: by_name.get(name, {}) for name, p in self.encoder.named_parameters()})

    def _load_optimizer(self, states: dict[nn.Parameter, dict[str, Tensor]]) -> None:
        for parameter, state in states.items():
            # What has a parameter's shape is kept in its memory format, counts as they are.
            self.optimizer.state[parameter] = {
                kind: torch.empty_like(parameter).copy_(value) if value.dim() else value.to(self.device, copy=True)
                for kind, value in state.items()
            }

    def _finish_gradients(self) -> bool:
        """Undo the loss's scale in the parameters' gradients and clip them; returns whether they are finite."""
        gradients = [parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None]
        scale = self._scale.value if self._scale else 1.0
        norm = total_norm(gradients) / scale
        finite = bool(norm.isfinite())
        factor = torch.ones_like(norm) / scale
        if self._max_gradient_norm is not None:
            factor *= (self._max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
        if finite and (self._scale or self._max_gradient_norm is not None):
            torch._foreach_mul_(gradients, factor)
        return finite


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean length of all tensors as one vector, which is NaN or infinite if one number is."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm
