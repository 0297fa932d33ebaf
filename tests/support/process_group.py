"""Real processes over gloo for tests: a module of its own, since a started process has to find it by name."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.support.fork_server import fork_context


def _enter(rank: int, world: int, store: str) -> None:
    # What it says goes to a file: the fork server's own outputs are not those of the test.
    said = os.open(f"{store}-{rank}-said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    function, arguments = torch.load(f"{store}-call", weights_only=False)
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
        # By a file: among the arguments of a process each tensor takes a descriptor, of which there are 256.
        torch.save((function, arguments), f"{store}-call")
        try:
            mp.start_processes(_enter, (world, store), nprocs=world, start_method=fork_context().get_start_method())
        finally:
            for said in sorted(Path(folder).glob("*-said")):
                sys.stderr.write(said.read_text(errors="replace"))
        return [torch.load(f"{store}-{rank}") for rank in range(world)]
