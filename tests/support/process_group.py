"""Calls in several processes of one gloo process group; the functions must live in modules that they can import.

The group checks that all ranks make the same collectives.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.support.collective_checker import check_collectives
from tests.support.fork_server import fork_context


def _enter(rank: int, world: int, store: str) -> None:
    # Output goes to a file: the outputs of the fork server are not those of the test.
    output = os.open(f"{store}-{rank}-output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    function, arguments = torch.load(f"{store}-call", weights_only=False)
    check_collectives()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        result = function(rank, world, *arguments)
    finally:
        dist.destroy_process_group()
    torch.save(result, f"{store}-{rank}")


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(rank, world, *arguments)` in `world` processes of one group and return their results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        # The arguments travel in a file: each tensor among the arguments of a process takes one of 256 descriptors.
        torch.save((function, arguments), f"{store}-call")
        try:
            start_processes(_enter, (world, store), nprocs=world, start_method=fork_context().get_start_method())  # type: ignore[no-untyped-call]
        finally:
            for output in sorted(Path(folder).glob("*-output")):
                sys.stderr.write(output.read_text(errors="replace"))
        return [torch.load(f"{store}-{rank}") for rank in range(world)]
