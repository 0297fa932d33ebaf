"""The abstract engine: precision, gradient, clipping and state, which all engines share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from infra.ranks.devices import tune_convolutions, use_ieee_fp32
from ssl_core.engines.config import EngineSetup
from ssl_core.engines.gradient_cache import Contrast, Projector, contrast_gradients
from ssl_core.engines.loss_scale import LossScale
from ssl_core.engines.step_update import KeptTensors, StepUpdate
from ssl_core.engines.train_config import Precision
from ssl_core.loss.agreement import agree
from ssl_core.loss.ntxent import GlobalBatch, LossReport
from ssl_core.model.batch_norm import rows_counted, running_statistics_kept, synchronize_batch_norm
from ssl_core.model.cpu_convolution import use_matrix_products
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import build_optimizer

_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
_MOST_GRAPHS: Final = 64


class AutocastEncoder(nn.Module):
    """The encoder under autocast, for images on any device: (N, 1, H, W) -> (N, d).

    A module, because DeepSpeed disables an autocast context around its own forward pass. It also takes images of
    several sizes, the largest first, for one backward pass through all. Each size is normalized by itself, and batch
    norm's running statistics follow the first one: a probe sees whole images, which resemble large views.

    `counted` (n,) says which samples count, if not all do; the images are one view of all n samples after the other.
    """

    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        super().__init__()
        self.encoder = encoder
        self._dtype = _AUTOCAST[precision]

    def forward(self, images: Tensor, *smaller: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return the projections in the autocast type, those of all images one after the other."""
        projections = self._project(images, counted)
        if not smaller:
            return projections
        with running_statistics_kept(self.encoder):
            return torch.cat([projections, *(self._project(of_size, counted) for of_size in smaller)])

    def _project(self, images: Tensor, counted: Tensor | None) -> Tensor:
        weight = self.encoder.head.output.weight
        images = images.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        of_images = counted.repeat(len(images) // len(counted)) if counted is not None and len(counted) else None
        with (
            rows_counted(self.encoder, of_images),
            torch.autocast(weight.device.type, self._dtype, enabled=self._dtype is not None),
        ):
            return self.encoder(images)


class Engine(Projector):
    """The encoder and its optimizer on this rank, stepped in unison with the other ranks; subclasses communicate.

    A step contrasts the projections of all ranks and normalizes over the images of all ranks, so it equals the step of
    one process with the whole global batch. Every method is collective. `backward` and `update` of DDP only queue work
    on a GPU; under ZeRO, DeepSpeed waits for the gradient's norm.

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
        else:
            tune_convolutions()
        self.encoder = encoder.to(setup.device).train()
        self.module: nn.Module = AutocastEncoder(self.encoder, setup.precision)
        self.optimizer = build_optimizer(setup.optim, self.encoder)
        self.gradient_norm: Tensor | float | None = None
        self._scale = LossScale(setup.device) if setup.precision == "fp16" else None
        self._max_gradient_norm = setup.config.max_gradient_norm
        self._loss_config = setup.loss
        self._micro_batches = setup.micro_batches
        self._has_gradients = False
        self._contrast: Contrast  # of the latest `backward`
        self._statistics: KeptTensors | None = None  # of batch norm, to restore if the step is skipped
        self._compiled = setup.config.compile
        if self._compiled:
            # One graph for each size of views, with and without gradients and running statistics.
            torch._dynamo.config.recompile_limit = _MOST_GRAPHS
            mode = "reduce-overhead" if setup.config.cuda_graphs else None
            self.encoder.backbone.compile(dynamic=False, mode=mode)  # in place, so that the names of its state stay

    @property
    def loss_scale(self) -> float | None:
        """Factor of the loss in fp16, None in other precisions; to ask for it waits for the device."""
        return self._scale.value.item() if self._scale else None

    @abstractmethod
    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole gradient that `backward` left for a parameter; collective."""

    @abstractmethod
    def _step(self) -> Tensor:
        """Step the optimizer unless the loss or a gradient is not finite; return whether it stepped, 0-dim."""

    @abstractmethod
    def _drop_gradients(self) -> None:
        """Drop the gradients of an earlier `backward`."""

    def backward(
        self, views: Sequence[Tensor], batch: GlobalBatch | None = None, counted: Tensor | None = None
    ) -> LossReport:
        """Compute the gradient of the global loss, in place of an earlier gradient.

        Args:
            views: this rank's share of the views, (n, 1, H, W) each: two large ones, then any number of small ones; n
                may differ between ranks, and be 0
            batch: what the ranks have agreed on; without it they do so here, about samples without identities
            counted: (n,) bool on the CPU, which samples count; the others, with images of any content, keep the shapes
                the same and change no number. All ranks give it, with the same n, or none does

        Returns:
            The loss and its health. The loss is NaN if a projection of any rank is not finite, or zero.

        Raises:
            UserError: on all ranks, as in `agree`
        """
        self._forget_gradients()
        batch = batch or agree(len(views[0]), self._loss_config)
        if counted is not None and counted.all() and not self._compiled:
            counted = None  # a compiled graph takes it always, so that it is compiled once
        # Only now, because DeepSpeed may have replaced the buffers.
        self._statistics = self._statistics or KeptTensors(list(self.encoder.buffers()))
        self._statistics.keep()
        self._contrast = contrast_gradients(self, views, batch, self._loss_config, self._micro_batches, counted)
        self._has_gradients = True
        return self._contrast.report

    def _forget_gradients(self) -> None:
        self._drop_gradients()
        self._has_gradients = False

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient that `backward` left, by parameter name; empty if there is none."""
        if not self._has_gradients:
            return {}
        scale = self._scale.value if self._scale else 1.0
        return {name: self._gradient_of(parameter) / scale for name, parameter in self.encoder.named_parameters()}

    def update(self, learning_rate: float) -> StepUpdate:
        """Step the optimizer and drop the gradient, unless the loss or the gradient was not finite.

        Returns:
            An update that is true if the weights change, and false, on all ranks, if nothing does. In fp16 that happens
            now and then, until the loss scale fits the gradients. The host waits for the GPU only when it asks.
        """
        assert self._has_gradients and self._statistics, "an update follows a backward"
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        learned = self._step()
        self._statistics.restore_unless(learned)
        if self._scale:
            self._scale.update(learned)
        self._forget_gradients()
        return StepUpdate(learned, self._contrast.projections)

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

    def _finish_gradients(self) -> Tensor:
        """Divide the gradients by the loss scale and clip them; return whether loss and gradients are finite, 0-dim."""
        parameters = list(self.encoder.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)  # NaN or infinite if one number is
        if self._scale:
            norm = norm / self._scale.value
            torch._foreach_mul_(gradients, 1 / self._scale.value)
        self.gradient_norm = norm
        if self._max_gradient_norm is not None:
            clip_grads_with_norm_(parameters, self._max_gradient_norm, norm)
        return norm.isfinite() & self._contrast.report.loss.isfinite()

    def _skip_unless(self, finite: Tensor) -> None:
        """Let the next step of the optimizer, torch's fused ones or LARS, change nothing unless `finite` is true."""
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
