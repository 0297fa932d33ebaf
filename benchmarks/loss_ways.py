"""The losses that `loss.py` measures: ours, equation 4 as written, and those of other libraries.

A loss takes the unnormalized projections of two views, (n, d) each, and returns a scalar. Other libraries are used as
in their documentation; `loss.py` lists those that are not installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.loss.ntxent import LossConfig, nt_xent

Loss = Callable[[Tensor, Tensor], Tensor]
# Called with rank, world size and temperature.
Build = Callable[[int, int, float], Loss]

_PML: Final = ("pytorch_metric_learning", "pip install pytorch-metric-learning")
_OPEN_CLIP: Final = ("open_clip", "pip install open_clip_torch")


@dataclass(frozen=True)
class Way:
    """A loss to measure.

    Attributes:
        build: makes the loss; it imports the library in the process that calls it.
        needs: module of the library and the command to install it; None for ours.
        growth: exponent by which memory grows with the number of rows.
        equation: the equation of the loss, whose gradient over the whole batch is the reference.
    """

    build: Build
    needs: tuple[str, str] | None = None
    growth: int = 2
    equation: Literal["NT-Xent", "CLIP"] = "NT-Xent"


def sternum(executor: Literal["auto", "dense", "tiled", "triton"], rank: int, world: int, temperature: float) -> Loss:
    """Return our loss by one of its executors."""
    config = LossConfig(temperature=temperature, executor=executor)
    return lambda first, second: nt_xent(first, second, config).loss


def equation_4(rank: int, world: int, temperature: float) -> Loss:
    """Return equation 4 in the fewest operations of torch: a similarity matrix and a cross entropy, by autograd."""

    def loss(first: Tensor, second: Tensor) -> Tensor:
        z = F.normalize(torch.cat([first, second]), dim=1)
        similarities = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
        return F.cross_entropy(similarities, torch.arange(len(z), device=z.device).roll(len(first)))

    return loss


def lightly(rank: int, world: int, temperature: float) -> Loss:
    """Build lightly's loss, which can gather from all ranks."""
    from lightly.loss import NTXentLoss  # noqa: PLC0415 - a peer, imported only where it runs

    loss: Loss = NTXentLoss(temperature, gather_distributed=world > 1)
    return loss


def solo_learn(rank: int, world: int, temperature: float) -> Loss:
    """Build solo-learn's loss; version 1.0.2 on PyPI contrasts within a rank only."""
    function = _solo_learn_function()
    if "indexes" not in signature(function).parameters:
        return lambda first, second: function(first, second, temperature=temperature)

    def loss(first: Tensor, second: Tensor) -> Tensor:  # later versions, in its repository
        indexes = rank * len(first) + torch.arange(len(first), device=first.device)
        return function(torch.cat([first, second]), indexes=indexes.repeat(2), temperature=temperature)

    return loss


def _solo_learn_function() -> Callable[..., Tensor]:
    """Load only the module of the loss: the package imports pytorch-lightning 1.4, which torch 2 does not support."""
    try:
        from solo.losses.simclr import simclr_loss_func  # noqa: PLC0415 - a peer, imported only where it runs
    except ImportError:
        package = find_spec("solo")
        assert package is not None and package.submodule_search_locations, "it was found before"
        path = Path(package.submodule_search_locations[0]) / "losses" / "simclr.py"
        spec = spec_from_file_location("solo_losses_simclr", path)
        assert spec is not None and spec.loader is not None, f"{path} is a module"
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        simclr_loss_func = module.simclr_loss_func
    function: Callable[..., Tensor] = simclr_loss_func
    return function


def metric_learning(name: str, efficient: bool, rank: int, world: int, temperature: float) -> Loss:
    """Build a loss of pytorch-metric-learning; its wrapper gathers from all ranks, so labels differ between ranks."""
    from pytorch_metric_learning import losses  # noqa: PLC0415 - a peer, imported only where it runs
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: PLC0415

    function: Any = getattr(losses, name)(temperature=temperature)
    if world > 1:
        function = DistributedLossWrapper(function, efficient=efficient)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        labels = rank * len(first) + torch.arange(len(first), device=first.device)
        value: Tensor = function(torch.cat([first, second]), labels.repeat(2))
        return value

    return loss


def open_clip(local_loss: bool, gather_with_grad: bool, rank: int, world: int, temperature: float) -> Loss:
    """Build open_clip's loss, with the views as its two modalities: CLIP's loss, without negatives of the same view."""
    from open_clip import ClipLoss  # noqa: PLC0415 - a peer, imported only where it runs

    function = ClipLoss(local_loss, gather_with_grad, rank=rank, world_size=world)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        value: Tensor = function(F.normalize(first, dim=1), F.normalize(second, dim=1), 1 / temperature)
        return value

    return loss


# Measured in one process: time and memory.
ALONE: Final = {
    "sternum, tiled": Way(partial(sternum, "tiled"), growth=1),
    "sternum, triton": Way(partial(sternum, "triton"), growth=1),
    "sternum, dense": Way(partial(sternum, "dense")),
    "equation 4 by autograd": Way(equation_4),
    "lightly NTXentLoss": Way(lightly, ("lightly", "pip install lightly")),
    "solo-learn simclr_loss_func": Way(solo_learn, ("solo", "pip install --no-deps solo-learn")),
    "pytorch-metric-learning NTXentLoss": Way(partial(metric_learning, "NTXentLoss", False), _PML, growth=3),
    "pytorch-metric-learning SupConLoss": Way(partial(metric_learning, "SupConLoss", False), _PML),
    "open_clip ClipLoss (CLIP's loss)": Way(partial(open_clip, False, False), _OPEN_CLIP, equation="CLIP"),
}

# Measured in several processes: the gradient after DDP's averaging.
TOGETHER: Final = {
    "sternum, dense": ALONE["sternum, dense"],
    "sternum, tiled": ALONE["sternum, tiled"],
    "lightly NTXentLoss(gather_distributed=True)": ALONE["lightly NTXentLoss"],
    "solo-learn simclr_loss_func": ALONE["solo-learn simclr_loss_func"],
    "pytorch-metric-learning DistributedLossWrapper": ALONE["pytorch-metric-learning NTXentLoss"],
    "pytorch-metric-learning DistributedLossWrapper(efficient=True)": Way(
        partial(metric_learning, "NTXentLoss", True), _PML
    ),
    **{
        f"open_clip ClipLoss(local_loss={local}, gather_with_grad={grad})": Way(
            partial(open_clip, local, grad), _OPEN_CLIP, equation="CLIP"
        )
        for local in (False, True)
        for grad in (False, True)
    },
}
