"""Second views of siblings: the right image, the same by both executors, and masked where an image is damaged."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sharding.reading.data_config import DataConfig
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Siblings
from sharding.reading.stream import sample_order
from ssl_core.views import PIXEL_TOLERANCE
from ssl_core.views.batches import Batch, WholeImage, image_batches, training_batches
from ssl_core.views.spec import ViewSpec
from tests.support.damaged_copies import copy_with, without_end, without_quantization
from tests.support.follow_ups import pack_follow_ups, write_follow_ups

SPEC = ViewSpec(size_px=48)
WHOLE = ViewSpec(
    size_px=48,
    crop_area=(1.0, 1.0),
    crop_aspect=(0.1, 10.0),
    flip_probability=0,
    rotation_degrees=0,
    blur_probability=0,
    brightness=0,
    contrast=0,
)
EXECUTORS = ["dali", "torchvision"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("follow-ups")
    return pack_follow_ups(write_follow_ups(root / "raw", patients=12), root / "packed")


@pytest.fixture(scope="module")
def shards(packed: Path) -> ShardSet:
    return ShardSet([packed])


@pytest.fixture(scope="module")
def order(shards: ShardSet) -> SampleOrder:
    return sample_order(shards, DataConfig(["x"], global_batch=8, lanes=4, shuffle_window=16), seed=3)


def take(
    shards: ShardSet, order: SampleOrder, spec: ViewSpec, executor: str, probability: float = 1.0, steps: int = 8
) -> list[Batch]:
    siblings = Siblings(shards, "patient", probability, seed=1)
    batches = training_batches(shards, order, spec, seed=1, siblings=siblings, view_executor=executor, threads=1)
    with closing(batches):
        return list(islice(batches, steps))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_first_view_shows_the_sample_and_the_second_its_sibling(
    shards: ShardSet, order: SampleOrder, executor: str
) -> None:
    whole = {
        int(sample): image
        for batch in image_batches(shards, WholeImage(48, "squash"), view_executor=executor)
        for sample, image in zip(batch.rows["sample"], batch.views[0], strict=True)
    }
    others = 0
    with_small = replace(WHOLE, small_views=2, small_size_px=48, small_crop_area=(1.0, 1.0))
    for batch in take(shards, order, with_small, executor, probability=0.7):
        assert batch.valid.all()
        first, second = batch.rows["sample"], batch.second_samples
        for samples, view in zip((first, second, first, first), batch.views, strict=True):  # small views too
            for sample, image in zip(samples.tolist(), view, strict=True):
                assert torch.allclose(image, whole[sample], atol=1e-3)
        assert batch.instances.tolist() == batch.rows["patient"].tolist()
        others += int((batch.rows["sample"] != batch.second_samples).sum())
    assert 10 < others < 64 * 0.8  # some samples have no sibling


@pytest.mark.parametrize("executor", EXECUTORS)
def test_sample_without_a_sibling_has_the_views_that_it_has_without_the_option(
    shards: ShardSet, order: SampleOrder, executor: str
) -> None:
    with closing(training_batches(shards, order, SPEC, seed=1, view_executor=executor, threads=1)) as batches:
        plain = list(islice(batches, 8))
    alone = 0
    for ours, theirs in zip(take(shards, order, SPEC, executor), plain, strict=True):
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert torch.allclose(ours.views[0], theirs.views[0], atol=1e-5)
        assert theirs.instances.tolist() == theirs.second_samples.tolist() == theirs.rows["sample"].tolist()
        own = ours.rows["sample"] == ours.second_samples
        assert torch.allclose(ours.views[1][own], theirs.views[1][own], atol=1e-5)
        alone += int(own.sum())
    assert alone


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, small_views=2, antialias=True)], ids=["two", "small ones too"])
def test_dali_and_torchvision_make_the_same_views_of_siblings(
    shards: ShardSet, order: SampleOrder, spec: ViewSpec
) -> None:
    for ours, theirs in zip(*(take(shards, order, spec, executor) for executor in EXECUTORS), strict=True):
        assert ours.second_samples.tolist() == theirs.second_samples.tolist()
        for first, second in zip(ours.views, theirs.views, strict=True):
            difference = (first - second).abs() * shards.pixel_std * 255
            assert difference.mean() < PIXEL_TOLERANCE["mean"]
            assert difference.max() < PIXEL_TOLERANCE["max"]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("damage", [without_end, without_quantization])
def test_sibling_that_does_not_decode_masks_the_samples_that_show_it_and_no_other(
    tmp_path: Path,
    shards: ShardSet,
    order: SampleOrder,
    packed: Path,
    executor: str,
    damage: Callable[[bytearray], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = take(shards, order, SPEC, executor)
    first = whole[0]
    item = int(np.flatnonzero(first.rows["sample"] != first.second_samples)[0])
    bad = first.second_samples[item]
    number = int(np.flatnonzero(shards.whole_index()["sample"] == bad)[0])
    positions = Positions(np.zeros(1, np.int64), *shards.locate(np.array([number])))
    copy = copy_with(packed, tmp_path / "copy", shards, positions, damage)
    for ours, theirs in zip(take(copy, order, SPEC, executor), whole, strict=True):
        shows_it = (theirs.rows["sample"] == bad) | (theirs.second_samples == bad)
        assert ours.valid.tolist() == (~shows_it).tolist()
        for view, expected in zip(ours.views, theirs.views, strict=True):
            assert torch.allclose(view[ours.valid], expected[ours.valid], atol=1e-5)
            assert not view[~ours.valid].any()
    name = f"sample {int(positions.row[0])} of {tmp_path}/copy/{shards.shards[int(positions.shard[0])].name}"
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: sample")]
    assert all(line.startswith(f"warning: {name} does not decode: ") for line in warnings)
    assert any(line.endswith("; the sample whose second view shows it is masked in step 0") for line in warnings)
