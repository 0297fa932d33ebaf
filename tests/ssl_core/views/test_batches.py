import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RunFailed, UserError
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_batches, sample_order
from sharding.simulation.datasets import write_cell
from ssl_core.views import PIXEL_TOLERANCE
from ssl_core.views.batches import Batch, RandomViews, WholeImage, image_batches, training_batches
from ssl_core.views.spec import ViewSpec
from tests.support.damaged_copies import copy_with, without_end, without_quantization

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
    return sample_order(shards, DataConfig([str(packed)], global_batch=8, lanes=4, shuffle_window=16), seed=3)


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


def test_views_are_normalized_by_the_shards_statistics(shards: ShardSet, order: SampleOrder) -> None:
    calm = ViewSpec(size_px=48, crop_area=(1.0, 1.0), rotation_degrees=0, blur_probability=0, brightness=0, contrast=0)
    steps = order.first_step_after_epoch(0)
    pixels = torch.cat([b.views[0] for b in islice(training_batches(shards, order, calm, seed=0), steps)])
    assert pixels.mean().item() == pytest.approx(0, abs=0.15)
    assert pixels.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("executor", ["dali", "torchvision"])
def test_image_batches_give_every_sample_once_in_packed_order(shards: ShardSet, executor: str) -> None:
    views = WholeImage(48, "pad")
    batches = list(image_batches(shards, views, local_batch=20, view_executor=executor))
    assert [len(batch.views[0]) for batch in batches] == [20, 20, 12]
    packed = np.concatenate([batch.rows["sample"] for batch in packed_batches(shards, 7)])
    assert np.concatenate([batch.rows["sample"] for batch in batches]).tolist() == packed.tolist()
    again = torch.cat(
        [
            batch.views[0]
            for batch in image_batches(shards, WholeImage(48, "pad"), local_batch=9, view_executor=executor)
        ]
    )
    assert torch.equal(torch.cat([batch.views[0] for batch in batches]), again)


def test_image_batches_use_the_backbones_statistics_when_given(shards: ShardSet) -> None:
    ours = next(image_batches(shards, WholeImage(48, "pad"))).views[0]
    theirs = next(image_batches(shards, WholeImage(48, "pad"), mean=0.0, std=1.0)).views[0]
    assert torch.allclose(ours * shards.pixel_std + shards.pixel_mean, theirs, atol=1e-5)


def augmented(
    shards: ShardSet, numbers: list[int], views_count: int, local_batch: int = 8, executor: str = "auto"
) -> list[Batch]:
    return list(
        image_batches(
            shards,
            RandomViews(SPEC, views_count, seed=1),
            numbers=np.array(numbers),
            local_batch=local_batch,
            view_executor=executor,
            threads=1,
        )
    )


@pytest.mark.parametrize("executor", ["dali", "torchvision"])
def test_augmented_views_of_chosen_samples_are_those_of_pretrainings_first_epochs(
    shards: ShardSet, order: SampleOrder, executor: str
) -> None:
    trained: dict[tuple[int, int], list[torch.Tensor]] = {}
    steps = order.first_step_after_epoch(1)
    for batch in islice(training_batches(shards, order, SPEC, seed=1, view_executor=executor, threads=1), steps):
        for position, identity in enumerate(identities(batch)):
            trained[identity] = [view[position] for view in batch.views]
    numbers = [3, 4, 17, 40, 51]
    packed = np.concatenate([shards.index(shard)["sample"] for shard in range(len(shards.shards))])
    batches = augmented(shards, numbers, views_count=4, local_batch=2, executor=executor)
    assert [len(batch.rows) for batch in batches] == [2, 2, 1]
    samples = np.concatenate([batch.rows["sample"] for batch in batches])
    assert samples.tolist() == packed[numbers].tolist()
    views = [torch.cat(view) for view in zip(*(batch.views for batch in batches), strict=True)]
    for position, sample in enumerate(samples.tolist()):
        expected = trained[0, sample] + trained[1, sample]
        for view, image in zip(views, expected, strict=True):
            assert torch.allclose(view[position], image, atol=1e-5)  # sums of a blur depend on the others' kernels


def test_augmented_views_do_not_depend_on_the_batch_or_on_their_number(shards: ShardSet) -> None:
    (whole,) = augmented(shards, [5, 30, 31], views_count=4)
    (fewer,) = augmented(shards, [31, 5], views_count=3)
    assert [view.shape for view in fewer.views] == [(2, 1, 48, 48)] * 3
    for view, image in zip(whole.views, fewer.views, strict=False):
        assert torch.equal(view[[2, 0]], image)


def test_waiting_is_measured(shards: ShardSet, order: SampleOrder) -> None:
    started_s = time.perf_counter()
    with closing(training_batches(shards, order, SPEC, seed=1)) as batches:
        waited_s = next(batches).wait_s
    assert 0 < waited_s <= time.perf_counter() - started_s


@pytest.mark.parametrize("executor", ["dali", "torchvision"])
def test_closing_ends_the_threads(shards: ShardSet, order: SampleOrder, executor: str) -> None:
    batches = training_batches(shards, order, SPEC, seed=1, view_executor=executor)
    next(batches)
    batches.close()
    running = [thread.name for thread in threading.enumerate()]
    assert not [name for name in running if name.startswith(("read-ahead", "make-views", "see-image"))]


def break_checksum(folder: Path, shards: ShardSet, bad: Positions) -> None:
    path = folder / shards.shards[int(bad.shard[0])].name
    content = bytearray(path.read_bytes())
    content[int(shards.rows(bad)[0]["image_offset"]) + 40] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("executor", ["dali", "torchvision"])
@pytest.mark.parametrize("damage", [break_checksum, without_end, without_quantization])
def test_damaged_sample_is_masked_and_named_and_affects_no_other(
    tmp_path: Path,
    shards: ShardSet,
    order: SampleOrder,
    packed: Path,
    executor: str,
    damage: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = order.batch(5)
    if damage is break_checksum:
        shutil.copytree(packed, tmp_path / "copy")
        break_checksum(tmp_path / "copy", shards, bad)
        copy = ShardSet([tmp_path / "copy"])
    else:
        copy = copy_with(packed, tmp_path / "copy", shards, bad, damage)
    whole = list(islice(training_batches(shards, order, SPEC, seed=1, view_executor=executor), 6))
    masked = list(islice(training_batches(copy, order, SPEC, seed=1, view_executor=executor), 6))
    assert [batch.step for batch in masked] == [0, 1, 2, 3, 4, 5]
    assert [batch.valid.all() for batch in masked] == [True] * 5 + [False]
    assert masked[5].valid.tolist() == [False] + [True] * 7
    for ours, theirs in zip(masked, whole, strict=True):
        assert identities(ours) == identities(theirs)
        for first, second in zip(ours.views, theirs.views, strict=True):
            assert torch.allclose(first[ours.valid], second[ours.valid], atol=1e-5)
            assert not first[~ours.valid].any()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: sample" in line]
    expected = f"warning: sample {int(bad.row[0])} of {tmp_path}/copy/{shards.shards[int(bad.shard[0])].name} does not"
    assert len([line for line in warnings if line.startswith(expected) and "masked in step 5" in line]) == 1


@pytest.mark.parametrize("executor", ["dali", "torchvision"])
@pytest.mark.parametrize("damage", [without_end, without_quantization])
def test_image_and_augmented_batches_stop_at_an_image_that_does_not_decode(
    tmp_path: Path,
    shards: ShardSet,
    order: SampleOrder,
    packed: Path,
    executor: str,
    damage: Callable[[bytearray], None],
) -> None:
    bad = order.batch(0)
    copy = copy_with(packed, tmp_path / "copy", shards, bad, damage)
    name = f"sample {int(bad.row[0])} of {tmp_path}/copy/{shards.shards[int(bad.shard[0])].name}"
    number = sum(shards.shard_samples[: int(bad.shard[0])]) + int(bad.row[0])
    others = [other for other in range(0, shards.samples, 9) if other != number]
    assert len(augmented(copy, others, views_count=2, executor=executor)) == 1
    with pytest.raises(RunFailed, match=rf"^{name} does not decode: .*; pack the dataset again"):
        list(image_batches(copy, WholeImage(48, "pad"), local_batch=5, view_executor=executor))
    with pytest.raises(RunFailed, match=rf"^{name} does not decode: .*; pack the dataset again"):
        augmented(copy, [*others, number], views_count=2, local_batch=3, executor=executor)


@settings(max_examples=6)
@given(first_step=st.integers(1, 25), threads=st.integers(1, 3))
def test_dalis_views_of_a_step_do_not_depend_on_where_the_run_was_resumed(
    shards: ShardSet, order: SampleOrder, first_step: int, threads: int
) -> None:
    (whole,) = islice(training_batches(shards, order, SPEC, seed=1, view_executor="dali"), first_step, first_step + 1)
    resumed = next(
        training_batches(shards, order, SPEC, seed=1, view_executor="dali", first_step=first_step, threads=threads)
    )
    assert identities(resumed) == identities(whole)
    assert all(torch.equal(first, second) for first, second in zip(resumed.views, whole.views, strict=True))


def test_dali_and_torchvision_train_on_the_same_views(shards: ShardSet, order: SampleOrder) -> None:
    dali, torchvision = (
        list(islice(training_batches(shards, order, SPEC, seed=1, first_step=4, view_executor=executor), 6))
        for executor in ("dali", "torchvision")
    )
    for ours, theirs in zip(dali, torchvision, strict=True):
        assert identities(ours) == identities(theirs)
        for first, second in zip(ours.views, theirs.views, strict=True):
            difference = (first - second).abs() * shards.pixel_std * 255
            assert difference.mean() < PIXEL_TOLERANCE["mean"]
            assert difference.max() < PIXEL_TOLERANCE["max"]


def test_world_that_does_not_divide_the_lanes_is_refused(shards: ShardSet, order: SampleOrder) -> None:
    with pytest.raises(UserError, match=r"world size 3 must divide data\.lanes=4"):
        training_batches(shards, order, SPEC, seed=1, rank=0, world=3)
