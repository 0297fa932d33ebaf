"""Gradients of a loss after DDP's averaging over several processes, compared with one process and the whole batch."""

import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import installed, one_line
from benchmarks.loss_ways import ALONE, TOGETHER

SAMPLES: Final = 64  # of the global batch
_INPUTS, _OUTPUTS = 32, 16
_TEMPERATURE: Final = 0.5
_TIMEOUT: Final = timedelta(seconds=60)


class Deviation(NamedTuple):
    """Deviation of a gradient g from the true one t: |g - t| / |t|, the cosine of their angle, and |g| / |t|."""

    relative_error: float
    cosine: float
    length: float


def measure_gradients(worlds: list[int]) -> dict[str, dict[str, Deviation | str]]:
    """Return the deviation of each loss at each world size, or the reason why there is none."""
    true = {equation: _true_gradient(equation) for equation in ("NT-Xent", "CLIP") if _has(equation)}
    results: dict[str, dict[str, Deviation | str]] = {}
    for world in worlds:
        gradients = _on_ranks(world)
        for name, way in TOGETHER.items():
            row = results.setdefault(name, {})
            if way.needs and not installed(way.needs[0]):
                row[str(world)] = f"not installed ({way.needs[1]})"
            else:
                found = gradients[name]
                row[str(world)] = found if isinstance(found, str) else _deviation(found, true[way.equation])
    return results


def _has(equation: str) -> bool:
    return equation == "NT-Xent" or installed("open_clip")


def _batch() -> tuple[Tensor, Tensor]:
    """Return two similar views of the global batch (samples, inputs), as after some training."""
    generator = torch.Generator().manual_seed(0)
    sample, *noise = torch.randn(3, SAMPLES, _INPUTS, generator=generator)
    return sample + 0.5 * noise[0], sample + 0.5 * noise[1]


def _model() -> nn.Linear:
    model = nn.Linear(_INPUTS, _OUTPUTS, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(_OUTPUTS, _INPUTS, generator=torch.Generator().manual_seed(1)))
    return model


def _true_gradient(equation: str) -> Tensor:
    """Return the gradient (outputs, inputs) of one process by autograd in float64."""
    name = "equation 4 by autograd" if equation == "NT-Xent" else "open_clip ClipLoss (CLIP's loss)"
    model, (first, second) = _model().double(), _batch()
    loss = ALONE[name].build(0, 1, _TEMPERATURE)(model(first.double()), model(second.double()))
    (gradient,) = torch.autograd.grad(loss, [model.weight])
    return gradient


def _deviation(gradient: Tensor, true: Tensor) -> Deviation:
    error, length = (gradient.double() - true).norm() / true.norm(), gradient.double().norm() / true.norm()
    cosine = nn.functional.cosine_similarity(gradient.double().flatten(), true.flatten(), dim=0)
    return Deviation(error.item(), cosine.item(), length.item())


def _on_ranks(world: int) -> dict[str, Tensor | str]:
    with tempfile.TemporaryDirectory(prefix="sternum-loss-") as folder:
        start_processes(_rank, (world, folder), nprocs=world, start_method="spawn")  # type: ignore[no-untyped-call]
        results: dict[str, Tensor | str] = torch.load(Path(folder) / "gradients")
        return results


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # deprecations in peers
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    gradients: dict[str, Tensor | str] = {}
    for name, way in TOGETHER.items():
        if way.needs and not installed(way.needs[0]):
            continue
        model = DistributedDataParallel(_model())
        first, second = (view.chunk(world)[rank] for view in _batch())
        try:
            loss = way.build(rank, world, _TEMPERATURE)
            # DDP needs one pass for both views
            projections = model(torch.cat([first, second]))
            loss(*projections.chunk(2)).backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # a peer's failure is a result, the same on all ranks
            gradients[name] = f"failed: {one_line(error)}"
            continue
        gradient = model.module.weight.grad
        assert isinstance(gradient, Tensor), "the loss depends on the model"
        gradients[name] = gradient
    if rank == 0:
        torch.save(gradients, Path(folder) / "gradients")
    dist.barrier()
    dist.destroy_process_group()
