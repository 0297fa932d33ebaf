"""The memory that one rank's training step needs, measured on tensors without content before anything is trained."""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_core.engines.engine import AutocastEncoder
from ssl_core.model.encoder import build_encoder
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.spec import VIEWS

# Numbers that an optimizer keeps for each weight: two moments, or one.
_STATES: Final = {"adam": 2, "adamw": 2, "lars": 1}
_ZERO_OPTIMIZER, _ZERO_GRADIENTS = 1, 2  # the stages of DeepSpeed from which the ranks split these


class StepMemory(NamedTuple):
    """What one rank holds at the end of a forward pass, in bytes.

    Attributes:
        parameters: the number of weights
        model: weights and buffers
        gradients: of the weights
        optimizer: its state
        activations: what autograd saves for the backward pass of one micro-batch
    """

    parameters: int
    model: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.model + self.gradients + self.optimizer + self.activations


def step_memory(config: PretrainConfig, world: int, zero_stage: int = 0) -> StepMemory:
    """Return the memory of one rank's step with the largest views, without temporary buffers and without the loss.

    The forward pass runs on torch's fake tensors, which have shapes but no content, so it takes neither memory nor
    time. The network is built with content, because timm reads numbers while it builds one. Measured at two sizes of a
    batch, because some of what autograd saves, such as weights in bf16, does not grow with it.

    Args:
        config: the run, settled
        world: the number of ranks
        zero_stage: what DeepSpeed splits among them
    """
    samples = -(-config.data.global_batch // (world * config.train.micro_batches))
    encoder = build_encoder(config.model, config.seed, config.views.size_px).train()  # bound to the last size if to any
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _drop_content(encoder, mode)
        module = AutocastEncoder(encoder, config.train.settled_precision)
        state = list(encoder.state_dict(keep_vars=True).values())
        views = max(config.views_of_stages(), key=lambda of_stage: of_stage.size_px)
        activations = _activations(module, state, VIEWS * samples, views.size_px)
        if views.small_views:
            activations += _activations(module, state, views.small_views * samples, views.small.size_px)
    weights = sum(parameter.nbytes for parameter in encoder.parameters())
    optimizer = _STATES[config.optim.name] * weights
    return StepMemory(
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        model=sum(tensor.nbytes for tensor in state),
        gradients=weights // world if zero_stage >= _ZERO_GRADIENTS else weights,
        optimizer=optimizer // world if zero_stage >= _ZERO_OPTIMIZER else optimizer,
        activations=activations,
    )


def checkpoint_bytes(config: PretrainConfig, memory: StepMemory) -> int:
    """Return the size of one checkpoint: the whole model and the whole state of the optimizer."""
    return memory.model + _STATES[config.optim.name] * 4 * memory.parameters


def _drop_content(encoder: nn.Module, mode: FakeTensorMode) -> None:
    for layer in encoder.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(mode.from_tensor(parameter.detach())))
        for name, buffer in list(layer.named_buffers(recurse=False)):
            setattr(layer, name, mode.from_tensor(buffer))


def _activations(module: AutocastEncoder, state: list[Tensor], images: int, size_px: int) -> int:
    two, four = (_saved_bytes(module, state, count, size_px) for count in (2, 4))
    return two + (four - two) * (images - 2) // 2


def _saved_bytes(module: AutocastEncoder, state: list[Tensor], images: int, size_px: int) -> int:
    """Return the bytes that autograd saves in a forward pass, besides the model itself; each storage counts once."""
    own = {tensor.untyped_storage()._cdata for tensor in state}
    saved: dict[int, Tensor] = {}  # keeps the tensors, so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.zeros(images, 1, size_px, size_px))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
