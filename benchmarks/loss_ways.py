"""The losses that `loss.py` measures: ours, the equation as it is written, and those of other libraries.

A loss takes the projections of two views, (n, d) each, not normalised, and returns a scalar. Other libraries are used
as their documentation shows; what is not installed is named by `benchmarks/loss.py`.
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
# Of rank, world size and temperature.
Build = Callable[[int, int, float], Loss]

_PML: Final = ("pytorch_metric_learning", "pip install pytorch-metric-learning")
_OPEN_CLIP: Final = ("open_clip", "pip install open_clip_torch")


@dataclass(frozen=True)
class Way:
    """One loss.

    Args:
        build: makes the loss in the process that calls it; there a library is imported.
        needs: the module of the library and how to get it; none for ours.
        growth: its memory grows with this power of the number of rows.
        equation: whose loss it is; a gradient is compared with that of the same equation over the whole batch.
    """

    build: Build
    needs: tuple[str, str] | None = None
    growth: int = 2
    equation: Literal["NT-Xent", "CLIP"] = "NT-Xent"


def sternum(executor: Literal["auto", "dense", "tiled", "triton"], rank: int, world: int, temperature: float) -> Loss:
    """Ours, with one of its executors."""
    config = LossConfig(temperature=temperature, executor=executor)
    return lambda first, second: nt_xent(first, second, config).loss


def equation_4(rank: int, world: int, temperature: float) -> Loss:
    """Equation 4 in the fewest operations of torch: one matrix of similarities and a cross entropy, by autograd."""

    def loss(first: Tensor, second: Tensor) -> Tensor:
        z = F.normalize(torch.cat([first, second]), dim=1)
        similarities = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
        return F.cross_entropy(similarities, torch.arange(len(z), device=z.device).roll(len(first)))

    return loss


def lightly(rank: int, world: int, temperature: float) -> Loss:
    """Build lightly's loss, which gathers from all ranks when asked to."""
    from lightly.loss import NTXentLoss  # noqa: PLC0415 - a peer, imported only where it runs

    loss: Loss = NTXentLoss(temperature, gather_distributed=world > 1)
    return loss


def solo_learn(rank: int, world: int, temperature: float) -> Loss:
    """Build solo-learn's loss; in 1.0.2, which the package index has, it contrasts within a rank only."""
    function = _solo_learn_function()
    if "indexes" not in signature(function).parameters:
        return lambda first, second: function(first, second, temperature=temperature)

    def loss(first: Tensor, second: Tensor) -> Tensor:  # later versions, from its repository
        indexes = rank * len(first) + torch.arange(len(first), device=first.device)
        return function(torch.cat([first, second]), indexes=indexes.repeat(2), temperature=temperature)

    return loss


def _solo_learn_function() -> Callable[..., Tensor]:
    """Load the module of the loss alone: the package imports pytorch-lightning 1.4, which torch 2 has left behind."""
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
    """Build one of pytorch-metric-learning's; its wrapper gathers from all ranks, labels are unique over them."""
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
    """Build open_clip's loss, the views as its two modalities: CLIP's, without negatives of the same view."""
    from open_clip import ClipLoss  # noqa: PLC0415 - a peer, imported only where it runs

    function = ClipLoss(local_loss, gather_with_grad, rank=rank, world_size=world)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        value: Tensor = function(F.normalize(first, dim=1), F.normalize(second, dim=1), 1 / temperature)
        return value

    return loss


# One process: time and memory.
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

# Several processes: the gradient after DDP has averaged it.
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
