"""The abstract engine: precision, gradient, clipping and state, which all engines share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from infra.devices import use_ieee_fp32
from infra.errors import RunFailed
from ssl_core.engines.config import EngineSetup
from ssl_core.engines.gradient_cache import Projector, contrast_gradients
from ssl_core.engines.loss_scale import LossScale
from ssl_core.engines.train_config import Precision
from ssl_core.loss.ntxent import Identities, LossReport
from ssl_core.model.batch_norm import running_statistics_kept, synchronize_batch_norm
from ssl_core.model.cpu_convolution import use_matrix_products
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import build_optimizer

_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
_INITIAL_LOSS_SCALE: Final = 2.0**16


class AutocastEncoder(nn.Module):
    """The encoder under autocast, for images on any device: (N, 1, H, W) -> (N, d).

    A module, because DeepSpeed disables an autocast context around its own forward pass. It also takes images of
    several sizes, the largest first, for one backward pass through all. Each size is normalized by itself, and batch
    norm's running statistics follow the first one: a probe sees whole images, which resemble large views.
    """

    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        super().__init__()
        self.encoder = encoder
        self._dtype = _AUTOCAST[precision]

    def forward(self, images: Tensor, *smaller: Tensor) -> Tensor:
        """Return the projections in the autocast type, those of all images one after the other."""
        if not smaller:
            return self._project(images)
        projections = self._project(images)
        with running_statistics_kept(self.encoder):
            return torch.cat([projections, *map(self._project, smaller)])

    def _project(self, images: Tensor) -> Tensor:
        weight = self.encoder.head.output.weight
        images = images.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        with torch.autocast(weight.device.type, self._dtype, enabled=self._dtype is not None):
            return self.encoder(images)


class Engine(Projector):
    """The encoder and its optimizer on this rank, stepped in unison with the other ranks; subclasses communicate.

    A step contrasts the projections of all ranks and normalizes over the images of all ranks, so it equals the step of
    one process with the whole global batch. Every method is collective.

    Attributes:
        device: this rank's device
        encoder: the encoder, whose parameter names are the keys of all states
        module: the encoder under autocast
        optimizer: torch's optimizer over the encoder's parameters
        gradient_norm: length of the newest gradient over all parameters, before clipping; None before the first
    """

    def __init__(self, setup: EngineSetup, encoder: Encoder) -> None:
        self.device = setup.device
        synchronize_batch_norm(encoder)
        if setup.precision == "fp32":
            use_ieee_fp32()
        if setup.device.type == "cpu":
            use_matrix_products(encoder)
        self.encoder = encoder.to(setup.device).train()
        self.module: nn.Module = AutocastEncoder(self.encoder, setup.precision)
        self.optimizer = build_optimizer(setup.optim, self.encoder)
        self.gradient_norm: Tensor | float | None = None
        self._scale = LossScale(_INITIAL_LOSS_SCALE) if setup.precision == "fp16" else None
        self._max_gradient_norm = setup.config.max_gradient_norm
        self._loss = setup.loss
        self._micro_batches = setup.micro_batches
        self._has_gradients = False
        self._statistics_before: list[Tensor] = []  # of batch norm, to restore if the step is skipped
        if setup.config.compile:
            self.encoder.backbone.compile()  # in place, so that the names of its state stay

    @property
    def loss_scale(self) -> float | None:
        """Factor of the loss in fp16, None in other precisions."""
        return self._scale.value if self._scale else None

    @abstractmethod
    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole gradient that `backward` left for a parameter; collective."""

    @abstractmethod
    def _step(self) -> bool:
        """Step the optimizer unless a gradient is not finite; return whether it stepped."""

    @abstractmethod
    def _drop_gradients(self) -> None:
        """Drop the gradients of an earlier `backward`."""

    def backward(self, views: Sequence[Tensor], identities: Identities | None = None) -> LossReport:
        """Compute the gradient of the global loss, in place of an earlier gradient.

        Args:
            views: this rank's share of the views, (n, 1, H, W) each: two large ones, then any number of small ones; n
                may differ between ranks, and be 0
            identities: identities of the n samples

        Returns:
            The loss and its health.

        Raises:
            UserError: on all ranks, as in `contrast_gradients`
            NonFinite: on all ranks, if a projection is not finite; batch norm's statistics are restored
        """
        self._forget_gradients()
        statistics = list(self.encoder.buffers())
        self._statistics_before = self._statistics_before or [torch.empty_like(values) for values in statistics]
        _copy_all(self._statistics_before, statistics)
        try:
            report = contrast_gradients(self, views, identities, self._loss, self._micro_batches)
        except RunFailed:
            self._restore_statistics()
            raise
        self._has_gradients = True
        return report

    def _forget_gradients(self) -> None:
        self._drop_gradients()
        self._has_gradients = False

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient that `backward` left, by parameter name; empty if there is none."""
        if not self._has_gradients:
            return {}
        scale = self._scale.value if self._scale else 1.0
        return {name: self._gradient_of(parameter) / scale for name, parameter in self.encoder.named_parameters()}

    def _restore_statistics(self) -> None:
        _copy_all(list(self.encoder.buffers()), self._statistics_before)

    def update(self, learning_rate: float) -> bool:
        """Step the optimizer and drop the gradient.

        Returns:
            False, on all ranks, if the gradient was not finite and nothing changed. In fp16 that happens now and then,
            until the loss scale fits the gradients.
        """
        assert self._has_gradients, "an update follows a backward"
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        finite = self._step()
        if not finite:
            self._restore_statistics()
        if self._scale:
            self._scale.update(finite=finite)
        self._forget_gradients()
        return finite

    def model_state(self) -> dict[str, Tensor]:
        """Return the encoder's parameters and buffers by name."""
        return self.encoder.state_dict()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors as `PARAMETER/exp_avg` and so on, the same for every engine and world size.

        In fp16 they include the loss scale, as `loss_scale/...`.
        """
        scale = self._scale.state() if self._scale else {}
        return scale | {
            f"{name}/{entry}": value
            for name, parameter in self.encoder.named_parameters()
            for entry, value in self._state_of(parameter).items()
        }

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.optimizer.state.get(parameter, {})
        return state

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Restore `model_state` and `optimizer_state` of any engine, saved at any world size."""
        self.encoder.load_state_dict(model)
        if self._scale:
            self._scale.load(optimizer)
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in optimizer.items():
            name, _, entry = key.rpartition("/")
            by_name.setdefault(name, {})[entry] = value
        self._load_optimizer({p: by_name.get(name, {}) for name, p in self.encoder.named_parameters()})

    def _load_optimizer(self, states: dict[nn.Parameter, dict[str, Tensor]]) -> None:
        for parameter, state in states.items():
            # Tensors of a parameter's shape take its memory format; step counts have no shape.
            self.optimizer.state[parameter] = {
                entry: torch.empty_like(parameter).copy_(value) if value.dim() else value.to(self.device, copy=True)
                for entry, value in state.items()
            }

    def _finish_gradients(self) -> bool:
        """Divide the gradients by the loss scale and clip them; return whether they are finite."""
        parameters = list(self.encoder.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        scale = self._scale.value if self._scale else 1.0
        norm = get_total_norm(gradients) / scale  # NaN or infinite if one number is
        self.gradient_norm = norm
        if not norm.isfinite():
            return False
        if self._scale:
            torch._foreach_mul_(gradients, 1 / scale)
        if self._max_gradient_norm is not None:
            clip_grads_with_norm_(parameters, self._max_gradient_norm, norm)
        return True


def _copy_all(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy all tensors, those of one type in one launch."""
    for dtype in {tensor.dtype for tensor in into}:
        pairs = [pair for pair in zip(into, values, strict=True) if pair[0].dtype == dtype]
        torch._foreach_copy_([pair[0] for pair in pairs], [pair[1] for pair in pairs])
