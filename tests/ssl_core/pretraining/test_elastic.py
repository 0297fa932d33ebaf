"""A run that resumes on another number of real processes uses the same samples and views as one process."""

import shutil
from contextlib import closing
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from infra.ranks.processes import Ranks
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_order
from sharding.simulation.datasets import write_cell
from ssl_core.pretraining.sample_log import SampleLog, read_sample_log, truncate_sample_log
from ssl_core.views.batches import training_batches
from ssl_core.views.spec import ViewSpec
from tests.support.process_group import on_ranks

STEPS = 14  # of 12 samples, from 52: three epochs are begun
Digests = dict[tuple[int, int], str]  # of both views, by (epoch, sample)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cell")
    write_cell(root / "raw", {"train": 40, "test": 12}, seed=0, size_px=64)
    pack(PackConfig("cell", root / "raw", root / "packed", shorter_side_px=64, shard_size_mb=0.03, workers=1))
    return root / "packed"


def take_part(rank: int, world: int, packed: str, run: str, first_step: int, end: int) -> Digests:
    """Act as one rank of a start of the run in `run`: log the samples, return their views."""
    if rank == 0:
        truncate_sample_log(Path(run), first_step)
    if world > 1:
        dist.barrier()
    shards = ShardSet([packed])
    order = sample_order(shards, DataConfig([packed], global_batch=12, lanes=12, shuffle_window=16), seed=3)
    digests = {}
    batches = training_batches(
        shards, order, ViewSpec(size_px=48), seed=1, first_step=first_step, rank=rank, world=world, view_executor="dali"
    )
    with closing(batches), SampleLog(Path(run), Ranks(rank, world)) as log:
        for batch in islice(batches, end - first_step):
            log.write(batch.step, batch.epochs, batch.rows["sample"], batch.valid)
            for position, key in enumerate(zip(batch.epochs.tolist(), batch.rows["sample"].tolist(), strict=True)):
                pixels = torch.cat([view[position] for view in batch.views])
                digests[key] = sha256(pixels.numpy().tobytes()).hexdigest()
    return digests


def consumed(run: Path) -> list[tuple[int, list[int], list[int]]]:
    return [(line.step, line.epochs.tolist(), line.samples.tolist()) for line in read_sample_log(run)]


def require_as_undisturbed(packed: Path, run: Path, digests: Digests) -> None:
    undisturbed = take_part(0, 1, str(packed), str(run.with_name("undisturbed")), 0, STEPS)
    assert consumed(run) == consumed(run.with_name("undisturbed"))
    assert digests == undisturbed
    keys = [key for _, *both in consumed(run) for key in zip(*both, strict=True)]
    assert len(keys) == len(set(keys)) == STEPS * 12
    assert {epoch for epoch, _ in keys} == {0, 1, 2, 3}


def starts(packed: Path, run: Path, *starts: tuple[int, int, int]) -> Digests:
    """Start the run again for each (world, first step, end), in real processes; later starts replace earlier steps."""
    digests: Digests = {}
    for world, first_step, end in starts:
        for made in on_ranks(world, take_part, str(packed), str(run), first_step, end):
            digests |= made
    return digests


def test_run_of_two_ranks_continues_on_one_and_on_four_as_if_undisturbed(tmp_path: Path, packed: Path) -> None:
    """The two ranks ended 2 steps after their last checkpoint, at step 5."""
    run = tmp_path / "on-four"
    before = starts(packed, run, (2, 0, 7))
    shutil.copytree(run, tmp_path / "on-one")
    on_four = starts(packed, run, (4, 5, STEPS))
    require_as_undisturbed(packed, run, before | on_four)
    on_one = take_part(0, 1, str(packed), str(tmp_path / "on-one"), 5, STEPS)
    require_as_undisturbed(packed, tmp_path / "on-one", before | on_one)


@pytest.mark.slow
def test_run_on_ever_changing_numbers_of_ranks_is_as_if_undisturbed(tmp_path: Path, packed: Path) -> None:
    run = tmp_path / "run"
    digests = starts(packed, run, (3, 0, 4), (1, 3, 6), (6, 5, 9), (2, 9, STEPS))
    require_as_undisturbed(packed, run, digests)
