"""What several folders of tests share: real processes, and small sets of simulated radiographs."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sharding.datasets.simulated import write_chexpert
from sharding.pack import PackConfig, pack

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _enter(rank: int, world: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        result = function(rank, world, *arguments)
    finally:
        if world > 1:
            dist.destroy_process_group()
    torch.save(result, f"{store}-{rank}")


@pytest.fixture
def on_ranks() -> Callable[..., list[Any]]:
    """Call `function(rank, world, *arguments)` in `world` real processes over gloo; returns what each returned."""

    def call(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            mp.start_processes(_enter, (world, store, function, arguments), nprocs=world, start_method="spawn")
            return [torch.load(f"{store}-{rank}") for rank in range(world)]

    return call


@pytest.fixture(scope="session")
def simulated_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 80 simulated CheXpert radiographs, packed at 64 px."""
    folder = tmp_path_factory.mktemp("simulated")
    write_chexpert(folder / "raw", patients=40, seed=0, size_px=64)
    pack(PackConfig("chexpert", folder / "raw", folder / "shards", shorter_side_px=64))
    return folder / "shards"
