"""Real processes over gloo for tests: a module of its own, since a started process has to find it by name."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank: int, world: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        result = function(rank, world, *arguments)
    finally:
        dist.destroy_process_group()
    torch.save(result, f"{store}-{rank}")


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(rank, world, *arguments)` in `world` processes of one group; returns what each returned."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        mp.start_processes(_enter, (world, store, function, arguments), nprocs=world, start_method="spawn")
        return [torch.load(f"{store}-{rank}") for rank in range(world)]
