"""Collectives that the ranks compare before they make them.

NCCL compares nothing: ranks that send other types or sizes hang or get garbage, and gloo aborts the process. torch's
own check (TORCH_DISTRIBUTED_DEBUG=DETAIL) crashes DDP in torch 2.15. What DDP itself sends is not compared.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

_CHECKED: Final = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_single",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "barrier",
)
_LONGEST: Final = 256


class UnequalCollectives(RuntimeError):
    """The ranks are about to make different collectives."""


def check_collectives() -> None:
    """Let the collectives of this process, over all ranks, raise UnequalCollectives on every rank if they differ.

    They differ if another function is called, or with another operation, other types or other numbers of values.
    """
    gather = dist.all_gather
    for name in _CHECKED:
        if hasattr(dist, name):
            setattr(dist, name, _checked(name, getattr(dist, name), gather))


def _checked(name: str, collective: Callable[..., Any], gather: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(collective)
    def checked(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return collective(*arguments, **options)
        given = [*arguments, *options.values()]
        groups = [value for value in given if isinstance(value, dist.ProcessGroup)]
        if all(group is dist.group.WORLD for group in groups):
            operation = next((str(value) for value in given if isinstance(value, dist.ReduceOp.RedOpType)), "")
            _compare(f"{name} {operation} {' '.join(map(_described, _tensors(given)))}", gather)
        return collective(*arguments, **options)

    return checked


def _compare(mine: str, gather: Callable[..., Any]) -> None:
    """Raise UnequalCollectives unless all ranks have the same text."""
    text = torch.zeros(_LONGEST, dtype=torch.uint8)
    encoded = mine.encode()[:_LONGEST]
    text[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    texts = [torch.empty_like(text) for _ in range(dist.get_world_size())]
    gather(texts, text)
    if any(not torch.equal(other, text) for other in texts):
        shown = [f"rank {rank}: {bytes(other.tolist()).decode().rstrip(chr(0))}" for rank, other in enumerate(texts)]
        raise UnequalCollectives("; ".join(shown))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}x{tensor.numel()}"
