import tracemalloc
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from sharding.reading.data_config import divisors
from sharding.reading.order import SampleOrder


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]))
    global_batch = lanes * draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    sizes[0] += max(0, global_batch - sum(sizes))
    window = draw(st.integers(1, 2 * sum(sizes)))
    seed = draw(st.integers(0, 2**32))
    return {"shard_samples": sizes, "lanes": lanes, "global_batch": global_batch, "window": window, "seed": seed}


orders = plans().map(lambda plan: SampleOrder(**plan))


def consumed(order: SampleOrder, steps: range) -> list[tuple[int, int, int]]:
    """(epoch, shard, row) in the order of consumption."""
    batches = [order.batch(step) for step in steps]
    return [place for batch in batches for place in zip(*(part.tolist() for part in batch), strict=True)]


@settings(max_examples=60)
@given(orders)
def test_every_sample_comes_exactly_once_an_epoch_over_three_epochs(order: SampleOrder) -> None:
    places = Counter(consumed(order, range(order.first_step_after_epoch(2))))
    everything = {(shard, row) for shard, size in enumerate(order.shard_samples) for row in range(size)}
    assert max(places.values()) == 1
    for epoch in range(3):
        assert {(shard, row) for e, shard, row in places if e == epoch} == everything


@settings(max_examples=60)
@given(orders, st.integers(0, 60))
def test_union_of_ranks_is_the_same_batch_for_every_world_size(order: SampleOrder, step: int) -> None:
    whole = order.batch(step)
    for world in divisors(order.lanes):
        parts = [order.batch(step, rank, world) for rank in range(world)]
        assert {len(part.row) for part in parts} == {order.global_batch // world}
        for field in whole._fields:
            joined = np.concatenate([getattr(part, field) for part in parts])
            assert joined.tolist() == getattr(whole, field).tolist()


@settings(max_examples=30)
@given(plans(), st.integers(0, 60))
def test_any_starting_step_gives_what_the_stream_gives_there(plan: dict[str, Any], first_step: int) -> None:
    undisturbed = consumed(SampleOrder(**plan), range(first_step + 3))
    resumed = consumed(SampleOrder(**plan), range(first_step, first_step + 3))
    assert resumed == undisturbed[first_step * plan["global_batch"] :]


@settings(max_examples=60)
@given(orders)
def test_chained_lanes_stay_within_one_sample_of_each_other(order: SampleOrder) -> None:
    depth = order.global_batch // order.lanes
    steps = range(order.first_step_after_epoch(2))
    epochs = np.stack([order.batch(step).epoch.reshape(order.lanes, depth) for step in steps])  # (steps, lanes, depth)
    for epoch in range(3):
        alone = (epochs == epoch).sum(axis=(0, 2))
        so_far = (epochs <= epoch).sum(axis=(0, 2))
        assert np.ptp(alone) <= 1
        assert np.ptp(so_far) <= 1


@pytest.mark.parametrize("window", [8, 64, 1000])
def test_neighboring_epochs_differ_in_order(window: int) -> None:
    order = SampleOrder([30, 50, 20, 28], lanes=4, global_batch=8, window=window, seed=5)
    places = consumed(order, range(order.first_step_after_epoch(3)))
    epochs = [[place[1:] for place in places if place[0] == epoch] for epoch in range(4)]
    for before, after in pairwise(epochs):
        assert sum(a == b for a, b in zip(before, after, strict=True)) < len(before) / 4


def test_seeds_differ_in_order() -> None:
    first, second = (consumed(SampleOrder([64], 4, 8, 64, seed), range(8)) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize(("window", "whole"), [(32, False), (1000, True)])
def test_window_bounds_the_shuffle_when_it_is_smaller_than_the_epoch(window: int, whole: bool) -> None:
    order = SampleOrder([1000], lanes=1, global_batch=8, window=window, seed=0)
    rows = np.concatenate([order.batch(step).row for step in range(4)])
    ring = np.sort(rows)
    widest_gap = np.diff(ring, append=ring[0] + 1000).max()
    assert (1000 - widest_gap > 31) == whole  # 32 neighbors on the disk, in a rotated order
    assert rows.tolist() != ring.tolist()


def test_rank_reads_its_part_of_the_shards_only() -> None:
    order = SampleOrder([1024] * 219, lanes=64, global_batch=256, window=8192, seed=1)
    touched = {int(shard) for step in range(order.first_step_after_epoch(0)) for shard in order.batch(step, 3, 8).shard}
    assert len(touched) <= 219 / 8 + 4  # its segment, the two shards at its borders, and the next epoch's start


@given(orders, st.integers(0, 5))
@settings(max_examples=60)
def test_epoch_borders_are_where_the_samples_say(order: SampleOrder, epoch: int) -> None:
    step = order.first_step_after_epoch(epoch)
    assert order.epoch_of(step) > epoch
    assert order.epoch_of(step - 1) <= epoch
    assert epoch not in order.batch(step).epoch
    assert epoch in order.batch(step - 1).epoch


def test_billion_samples_are_planned_in_memory_of_the_shards() -> None:
    sizes = np.full(1_000_000, 1000)
    tracemalloc.start()
    try:
        order = SampleOrder(sizes, lanes=4096, global_batch=65536, window=2**20, seed=0)
        positions = order.batch(123_456, rank=4095, world=4096)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(positions.row) == 16
    assert peak_bytes < 200 * sizes.size


@pytest.mark.parametrize(
    ("lanes", "global_batch", "window", "message"),
    [
        (12, 256, 64, r"lanes=12 must divide global_batch=256; try 8 or 16$"),
        (512, 256, 64, r"lanes=512 must divide global_batch=256; try 256$"),
        (0, 256, 64, r"lanes=0 must be at least 1"),
        (4, 0, 64, r"global_batch=0 must be at least 1"),
        (4, 8, 0, r"shuffle_window=0 must be at least 1"),
        (64, 64, 64, r"global_batch=64 must not exceed the 40 samples of the shards.*try 32$"),
    ],
)
def test_order_names_value_rule_and_fix_when_it_is_impossible(
    lanes: int, global_batch: int, window: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SampleOrder([30, 10], lanes, global_batch, window, seed=0)


def test_world_that_does_not_divide_the_lanes_is_refused() -> None:
    order = SampleOrder([100], lanes=16, global_batch=32, window=64, seed=0)
    with pytest.raises(UserError, match=r"world size 3 must divide lanes=16; start 2 or 4 processes$"):
        order.batch(0, rank=0, world=3)
