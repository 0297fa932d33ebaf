"""Small views beside the two large ones (multi-crop)."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import UserError
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_order
from sharding.simulation.datasets import write_cell
from ssl_core.views import PIXEL_TOLERANCE, ViewBatch, ViewInputs, ViewTask, build_view_executor
from ssl_core.views.batches import RandomViews, image_batches, training_batches
from ssl_core.views.drawing import draw, draw_views
from ssl_core.views.spec import ViewSpec
from tests.ssl_core.views.test_views import EPOCHS, EXECUTORS, IMAGES, ROWS, SIZES

SPEC = ViewSpec(size_px=48, small_views=3, small_size_px=20, small_crop_area=(0.05, 0.2))
LARGE = replace(SPEC, small_views=0)


def make(executor: str, spec: ViewSpec) -> ViewBatch:
    task = ViewTask(spec.size_px, 2, 0.0, 1 / 255, 12, threads=1, steps=spec.steps, small_sizes_px=spec.small_sizes_px)
    images = [None, *IMAGES[1:]]
    inputs = ViewInputs(images, ROWS, draw_views(spec, 7, ROWS, EPOCHS))
    return next(build_view_executor(executor, task).run(iter([inputs])))


@pytest.mark.parametrize("antialias", [False, True])
def test_executors_agree_and_large_views_stay_as_they_are_without_small_ones(antialias: bool) -> None:
    spec = replace(SPEC, antialias=antialias)
    ours, theirs = (make(executor, spec) for executor in EXECUTORS)
    assert [tuple(view.shape) for view in ours.views] == [(12, 1, 48, 48)] * 2 + [(12, 1, 20, 20)] * 3
    for first, second in zip(ours.views, theirs.views, strict=True):
        assert (first - second).abs().max() < PIXEL_TOLERANCE["max"]
        assert not first[0].any()  # the blank
    for executor, batch in zip(EXECUTORS, (ours, theirs), strict=True):
        for view, alone in zip(batch.views[:2], make(executor, replace(spec, small_views=0)).views, strict=True):
            assert torch.allclose(view, alone, atol=1e-3)


def test_draws_of_large_views_do_not_move_and_small_ones_differ_from_all_others() -> None:
    views, large = draw(SPEC, 7, ROWS, EPOCHS), draw(LARGE, 7, ROWS, EPOCHS)
    assert len(views) == 5
    for view, alone in zip(views[:2], large, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(view, alone, strict=True))
    assert len({float(view.brightness[0]) for view in views}) == 5
    image_area = np.array([height * width for height, width in SIZES])
    for view in views[2:]:
        share = view.crop_w * view.crop_h / image_area
        assert (share >= 0.0499).all()
        assert (share <= 0.2001).all()


def test_a_small_view_has_half_of_the_size_by_default() -> None:
    assert ViewSpec(size_px=96, small_views=2).small_sizes_px == (48, 48)
    assert ViewSpec(size_px=20, small_views=1, blur_sigma_px=(0.1, 2.5)).small_sizes_px == (16,)
    assert ViewSpec(size_px=96).small_sizes_px == ()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root: Path = tmp_path_factory.mktemp("cell")
    write_cell(root / "raw", {"train": 24}, seed=0, size_px=64)
    pack(PackConfig("cell", root / "raw", root / "packed", shorter_side_px=64, shard_size_mb=0.03, workers=1))
    return ShardSet([str(root / "packed")])


def test_ranks_get_their_part_of_all_views_from_any_step_on(shards: ShardSet) -> None:
    order = sample_order(shards, DataConfig([shards.names[0]], global_batch=8, lanes=8, shuffle_window=16), seed=3)
    whole = list(islice(training_batches(shards, order, SPEC, seed=1, threads=1), 4))
    parts = [
        list(islice(training_batches(shards, order, SPEC, seed=1, rank=rank, world=2, first_step=2, threads=1), 2))
        for rank in range(2)
    ]
    for number, batch in enumerate(whole[2:]):
        for view in range(5):
            together = torch.cat([part[number].views[view] for part in parts])
            assert torch.allclose(together, batch.views[view], atol=1e-3)
    assert [view.shape[-1] for view in whole[0].views] == [48, 48, 20, 20, 20]


def test_views_for_choosing_checkpoints_are_large_ones(shards: ShardSet) -> None:
    with_small, without = (
        next(image_batches(shards, RandomViews(spec, 4, seed=1), local_batch=8, threads=1)) for spec in (SPEC, LARGE)
    )
    for one, other in zip(with_small.views, without.views, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"small_views": 13}, r"views\.small_views=13 must be between 0 and 12; try 4"),
        ({"small_views": 2, "small_size_px": 300}, r"views\.small_size_px=300 must be between 16 and 224; try 112"),
        ({"small_crop_area": (0.5, 0.1)}, r"views\.small_crop_area=\[0\.5, 0\.1\] must be two numbers"),
    ],
)
def test_spec_names_value_rule_and_fix_when_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViewSpec(**arguments)
