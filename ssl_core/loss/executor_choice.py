"""The choice of the loss executor: by name, or the fastest that runs here."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Final, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from infra.configuration.options import key
from infra.errors import require
from infra.log import say
from infra.ranks.processes import gather_objects
from ssl_core.loss.config import LossConfig
from ssl_core.loss.pair_sums import Keys, LossExecutor, RowPairs

# Up to this many global rows, `auto` computes the whole matrix: in float64 it is then as fast as tiles in fp32.
DENSE_UP_TO: Final = 256
_LEAST_CAPABILITY: Final = (8, 0)  # older GPUs lack the shared memory, and their compiler takes minutes to find out


def loss_executor(loss: LossConfig, all_rows: Tensor, *, keyed: bool) -> LossExecutor:
    """Return the module that computes the sums. Collective: all ranks get the same.

    Args:
        loss: settings of the loss
        all_rows: (N, d) the rows of all ranks
        keyed: whether pairs have keys

    Raises:
        UserError: if triton is chosen and not available
    """
    option = key(LossConfig, "executor")
    name: str = loss.executor
    if name == "auto":
        name = "dense" if len(all_rows) <= DENSE_UP_TO else "tiled"
        if all_rows.is_cuda and all_rows.dtype == torch.float32 and find_spec("triton"):
            name = _on_gpu(name, all_rows.device, all_rows.shape[1], keyed, loss)
    if name == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        require(
            find_spec("triton") is not None and (all_rows.is_cuda or interpreted),
            f"{option}=triton needs a GPU and the package triton; use {option}=auto",
        )
        name = "kernels"
    return cast(LossExecutor, import_module(f"ssl_core.loss.{name}"))


def _on_gpu(otherwise: str, device: torch.device, d: int, keyed: bool, loss: LossConfig) -> str:
    kernels = import_module("ssl_core.loss.kernels")
    if d > kernels.LARGEST_D:
        return otherwise
    run = _kernels_run_on_all_ranks(device, d, keyed, loss.temperature, loss.decoupled)
    return "triton" if run else otherwise


@cache  # ranks ask in the same order, so all of them compute an answer or none does
def _kernels_run_on_all_ranks(device: torch.device, d: int, keyed: bool, temperature: float, decoupled: bool) -> bool:
    reasons = gather_objects(why_kernels_fail(device, d, keyed, temperature, decoupled))
    failed = [(rank, reason) for rank, reason in enumerate(reasons) if reason is not None]
    if failed and (not dist.is_initialized() or dist.get_rank() == 0):
        rank, reason = failed[0]
        option = key(LossConfig, "executor")
        say(
            f"warning: the kernels of {option}=triton do not run on rank {rank} ({reason}); all ranks compute the loss "
            f"as with {option}=tiled, which is slower"
        )
    return not failed


def why_kernels_fail(
    device: torch.device, d: int, keyed: bool, temperature: float, decoupled: bool = False
) -> str | None:
    """Run the Triton kernels once on four rows of d numbers; return why they fail, or None.

    Triton needs a C compiler, Python's headers and room on the GPU, and says so at the first launch, in many ways. The
    compiled kernels stay, so a success costs nothing.
    """
    try:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
            return "they need compute capability 8.0"
        kernels = import_module("ssl_core.loss.kernels")
        z = F.normalize(torch.eye(4, d, device=device) + 1)
        rows = torch.arange(4, device=device)
        keys = Keys(rows % 2, rows % 2) if keyed else None
        pairs = RowPairs(z, z, keys, 0, (rows + 2) % 4, temperature, decoupled)
        stats = kernels.forward(pairs)
        kernels.backward(pairs, stats.others, stats.positives)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return None
