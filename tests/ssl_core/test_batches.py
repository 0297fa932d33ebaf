import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import RunFailed, UserError
from sharding.datasets.simulated import write_cell
from sharding.order import SampleOrder
from sharding.pack import PackConfig, pack
from sharding.stream import DataConfig, ShardSet, packed_batches, sample_order
from ssl_core.batches import Batch, image_batches, training_batches
from ssl_core.views.spec import ViewSpec

SPEC = ViewSpec(size_px=48)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cell")
    write_cell(root / "raw", {"train": 40, "test": 12}, seed=0, size_px=64)
    pack(PackConfig("cell", root / "raw", root / "packed", shorter_side_px=64, shard_size_mb=0.03, workers=1))
    return root / "packed"


@pytest.fixture(scope="module")
def shards(packed: Path) -> ShardSet:
    return ShardSet([packed])


@pytest.fixture(scope="module")
def order(packed: Path, shards: ShardSet) -> SampleOrder:
    return sample_order(shards, DataConfig([packed], global_batch=8, lanes=4, shuffle_window=16), seed=3)


def identities(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.epochs.tolist(), batch.rows["sample"].tolist(), strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_train_on_the_views_of_one_process(shards: ShardSet, order: SampleOrder, world: int) -> None:
    whole = list(islice(training_batches(shards, order, SPEC, seed=1, threads=1), 9))
    parts = [
        list(islice(training_batches(shards, order, SPEC, seed=1, rank=rank, world=world, first_step=4, threads=1), 5))
        for rank in range(world)
    ]
    for batch, *ranks in zip(whole[4:], *parts, strict=True):
        assert {part.step for part in ranks} == {batch.step}
        assert [pair for part in ranks for pair in identities(part)] == identities(batch)
        for view in range(2):
            assert torch.equal(torch.cat([part.views[view] for part in ranks]), batch.views[view])


def test_epoch_gives_every_sample_once_with_other_views_in_the_next(shards: ShardSet, order: SampleOrder) -> None:
    first_view: dict[tuple[int, int], torch.Tensor] = {}
    for batch in islice(training_batches(shards, order, SPEC, seed=1), order.first_step_after_epoch(1)):
        assert [view.shape for view in batch.views] == [(8, 1, 48, 48)] * 2
        assert not torch.equal(batch.views[0], batch.views[1])
        for identity, image in zip(identities(batch), batch.views[0], strict=True):
            assert identity not in first_view
            first_view[identity] = image
    samples = {sample for epoch, sample in first_view if epoch == 0}
    assert len(samples) == shards.samples
    assert not any(torch.equal(first_view[0, sample], first_view[1, sample]) for sample in samples)


def test_views_are_normalised_by_the_shards_statistics(shards: ShardSet, order: SampleOrder) -> None:
    calm = ViewSpec(size_px=48, crop_area=(1.0, 1.0), rotation_degrees=0, blur_probability=0, brightness=0, contrast=0)
    steps = order.first_step_after_epoch(0)
    pixels = torch.cat([b.views[0] for b in islice(training_batches(shards, order, calm, seed=0), steps)])
    assert pixels.mean().item() == pytest.approx(0, abs=0.15)
    assert pixels.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
def test_image_batches_give_every_sample_once_in_packed_order(shards: ShardSet, kind: str) -> None:
    batches = list(image_batches(shards, 48, local_batch=20, kind=kind))
    assert [len(batch.views[0]) for batch in batches] == [20, 20, 12]
    packed = np.concatenate([batch.rows["sample"] for batch in packed_batches(shards, 7)])
    assert np.concatenate([batch.rows["sample"] for batch in batches]).tolist() == packed.tolist()
    again = torch.cat([batch.views[0] for batch in image_batches(shards, 48, local_batch=9, kind=kind)])
    assert torch.equal(torch.cat([batch.views[0] for batch in batches]), again)


def test_image_batches_use_the_backbones_statistics_when_given(shards: ShardSet) -> None:
    ours = next(image_batches(shards, 48)).views[0]
    theirs = next(image_batches(shards, 48, mean=0.0, std=1.0)).views[0]
    assert torch.allclose(ours * shards.pixel_std + shards.pixel_mean, theirs, atol=1e-5)


def test_waiting_is_measured_and_falls_when_the_consumer_is_slow(shards: ShardSet, order: SampleOrder) -> None:
    batches = training_batches(shards, order, SPEC, seed=1)
    first = next(batches)
    waits_s = []
    for _ in range(5):
        time.sleep(0.2)
        waits_s.append(next(batches).wait_s)
    batches.close()
    assert first.wait_s > 0
    assert sorted(waits_s)[2] < 0.1  # made while the consumer was busy


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
def test_closing_ends_the_threads(shards: ShardSet, order: SampleOrder, kind: str) -> None:
    batches = training_batches(shards, order, SPEC, seed=1, kind=kind)
    next(batches)
    batches.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
def test_damaged_sample_stops_training_at_its_step(
    tmp_path: Path, shards: ShardSet, order: SampleOrder, packed: Path, kind: str
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = order.batch(5)
    shard, row = int(bad.shard[0]), int(bad.row[0])
    copy = ShardSet([tmp_path])
    offset = int(copy.rows(bad)[0]["image_offset"])
    content = bytearray((tmp_path / copy.shards[shard].name).read_bytes())
    content[offset + 40] ^= 255
    (tmp_path / copy.shards[shard].name).write_bytes(content)
    steps = []
    with pytest.raises(RunFailed, match=rf"sample {row} of .*{copy.shards[shard].name} does not match its checksum"):
        for batch in training_batches(copy, order, SPEC, seed=1, kind=kind):
            steps.append(batch.step)
    assert steps == [0, 1, 2, 3, 4]


def test_world_that_does_not_divide_the_lanes_is_refused(shards: ShardSet, order: SampleOrder) -> None:
    with pytest.raises(UserError, match=r"world size 3 must divide data\.lanes=4"):
        training_batches(shards, order, SPEC, seed=1, rank=0, world=3)
