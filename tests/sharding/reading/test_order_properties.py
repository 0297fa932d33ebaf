"""Laws of the order that hold for a run as it is lived: stopped anywhere, continued on any number of ranks."""

from collections import Counter
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sharding.format.manifest import Manifest, Shard
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import EncodedBatch, sample_batches, sample_order
from sharding.simulation.datasets import write_chexpert
from tests.support.fork_server import fork_context

WORLDS = (1, 2, 3, 4, 8, 16)
EPOCHS = 3

Place = tuple[int, int, int]  # epoch, shard, row


class Run(NamedTuple):
    """A run over three epochs: its plan, and on how many ranks it went on from each step at which it was stopped."""

    plan: dict[str, Any]
    starts: dict[int, int]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 48, 48]))
    global_batch = lanes * draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=15))
    sizes[-1] += max(0, global_batch - sum(sizes))
    window = draw(st.one_of(st.integers(1, 3 * lanes), st.integers(1, 2 * sum(sizes))))
    plan: dict[str, Any] = {"shard_samples": sizes, "lanes": lanes, "global_batch": global_batch, "window": window}
    steps = SampleOrder(**plan, seed=0).first_step_after_epoch(EPOCHS - 1)
    stops = draw(st.lists(st.integers(1, steps - 1), max_size=4)) if steps > 1 else []
    worlds = st.sampled_from([world for world in WORLDS if lanes % world == 0])
    starts = {step: draw(worlds) for step in sorted({0, *stops})}
    return Run(plan | {"seed": draw(st.integers(0, 2**63))}, starts)


def places(positions: Positions) -> list[Place]:
    return list(zip(*(part.tolist() for part in positions), strict=True))


def steps_of(plan: dict[str, Any]) -> int:
    return SampleOrder(**plan).first_step_after_epoch(EPOCHS - 1)


def undisturbed(plan: dict[str, Any]) -> list[list[Place]]:
    order = SampleOrder(**plan)
    return [places(order.batch(step)) for step in range(steps_of(plan))]


def lived(run: Run) -> list[list[list[Place]]]:
    """Give for each step what each rank consumed; every rank of every start plans anew, knowing only the step."""
    borders = [*run.starts, steps_of(run.plan)]
    log = []
    for first, last, world in zip(borders, borders[1:], run.starts.values(), strict=False):
        ranks = [SampleOrder(**run.plan) for _ in range(world)]
        log += [
            [places(order.batch(step, rank, world)) for rank, order in enumerate(ranks)] for step in range(first, last)
        ]
    return log


@settings(max_examples=40)
@given(runs())
def test_run_stopped_anywhere_and_continued_on_other_ranks_consumes_the_undisturbed_steps(run: Run) -> None:
    log = lived(run)
    for whole, ranks in zip(undisturbed(run.plan), log, strict=True):
        assert [place for rank in ranks for place in rank] == whole
        assert len({len(rank) for rank in ranks}) == 1
    seen = Counter(place for ranks in log for rank in ranks for place in rank)
    assert set(seen.values()) == {1}
    everything = {(shard, row) for shard, size in enumerate(run.plan["shard_samples"]) for row in range(size)}
    for epoch in range(EPOCHS):
        assert {place[1:] for place in seen if place[0] == epoch} == everything
    assert max(place[0] for place in seen) <= EPOCHS  # the last step may hold the first samples of the next epoch


@settings(max_examples=20)
@given(runs(), st.randoms(use_true_random=False))
def test_batch_does_not_depend_on_the_batches_that_were_asked_for_before(run: Run, shuffled: Any) -> None:
    expected = undisturbed(run.plan)
    order, steps = SampleOrder(**run.plan), list(range(len(expected)))
    shuffled.shuffle(steps)
    assert [places(order.batch(step)) for step in steps] == [expected[step] for step in steps]


@settings(max_examples=20)
@given(runs())
def test_global_batch_holds_no_sample_twice_within_an_epoch_and_epochs_only_go_forward(run: Run) -> None:
    before = 0
    for batch in undisturbed(run.plan):
        assert len(set(batch)) == len(batch)
        epochs = {place[0] for place in batch}
        assert min(epochs) >= before
        assert max(epochs) - min(epochs) <= 1
        before = max(before, min(epochs))


@settings(max_examples=40)
@given(st.integers(2, 8), st.integers(4, 12), st.integers(8, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_lane_needs_two_shards_at_once_at_most_when_its_window_fits_into_a_shard(
    lanes: int, shards: int, shard_samples: int, lane_window: int, seed: int
) -> None:
    window = lanes * min(lane_window, shard_samples)
    assume(window < shards * shard_samples)  # else the epoch is shuffled whole
    order = SampleOrder([shard_samples] * shards, lanes, lanes, window, seed)
    steps = range(order.first_step_after_epoch(0) - 1, order.first_step_after_epoch(1))
    batches = [order.batch(step) for step in steps]  # one sample a step and lane
    for lane in range(lanes):
        read = [int(batch.shard[lane]) for batch in batches if batch.epoch[lane] == 1]
        spans = [(read.index(shard), len(read) - read[::-1].index(shard)) for shard in set(read)]
        needed = [sum(first <= turn < end for first, end in spans) for turn in range(len(read))]
        assert max(needed) <= 2


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    kinds = st.tuples(st.sampled_from([1, 10, 100]), st.sampled_from(["train", "val"]), st.integers(1, 50))
    chosen = [(1, "train", draw(st.integers(8, 50))), *draw(st.lists(kinds, max_size=12))]
    shards = [
        Shard(f"{number:05d}.tar", samples, 1000 * samples, f"{number:064x}", "", tier, split)
        for number, (tier, split, samples) in enumerate(chosen)
    ]
    total = sum(shard.samples for shard in shards)
    return Manifest(1, "simulated", "a test", {}, total, total, 0.5, 0.2, shards, [])


@given(manifests())
def test_fractions_are_nested_in_the_samples_that_a_run_consumes(manifest: Manifest) -> None:
    consumed = []
    for percent in (1, 10, 100):
        chosen = manifest.select(["train"], percent)
        order = SampleOrder([shard.samples for shard in chosen], lanes=4, global_batch=8, window=64, seed=0)
        batches = [order.batch(step) for step in range(order.first_step_after_epoch(0))]
        consumed.append({(chosen[shard].name, row) for batch in batches for _, shard, row in places(batch)})
        assert {shard.split for shard in chosen} == {"train"}
    assert consumed[0] <= consumed[1] <= consumed[2]
    assert len(consumed[2]) == sum(shard.samples for shard in manifest.shards if shard.split == "train")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fractions")
    write_chexpert(root / "raw", patients=60, seed=1, size_px=32)
    pack(PackConfig("chexpert", root / "raw", root / "packed", shorter_side_px=32, shard_size_mb=0.02, workers=1))
    return root / "packed"


def test_fractions_of_a_packed_set_are_nested_and_share_no_patient_with_their_remainder(packed: Path) -> None:
    sets = [ShardSet([packed], [], percent) for percent in (1, 10, 100)]
    rows = [np.concatenate([shards.index(number) for number in range(len(shards.shards))]) for shards in sets]
    assert 0 < len(rows[0]) < len(rows[1]) < len(rows[2])
    for inner, outer in pairwise(rows):
        assert set(inner["sample"].tolist()) <= set(outer["sample"].tolist())
        rest = ~np.isin(outer["sample"], inner["sample"])
        assert not set(inner["patient"].tolist()) & set(outer["patient"][rest].tolist())


def consume(packed: Path, first_step: int, last_step: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
    """Read one rank's part of some steps: its (epoch, sample) pairs, and what was read is what was packed."""
    shards, order = _stream(packed)
    stream = sample_batches(shards, order, first_step=first_step, rank=rank, world=world)
    with closing(stream):
        return [_pairs(batch) for batch in islice(stream, last_step - first_step)]


def _stream(packed: Path) -> tuple[ShardSet, SampleOrder]:
    data = DataConfig([str(packed)], global_batch=16, lanes=8, shuffle_window=32)
    shards = ShardSet([packed])
    return shards, sample_order(shards, data, seed=7)


def _pairs(batch: EncodedBatch) -> list[tuple[int, int]]:
    return list(zip(batch.epochs.tolist(), batch.rows["sample"].tolist(), strict=True))


def test_two_processes_stopped_and_continued_by_one_and_by_four_consume_the_undisturbed_log(packed: Path) -> None:
    _, order = _stream(packed)
    last_step = order.first_step_after_epoch(EPOCHS - 1)
    whole = consume(packed, 0, last_step, 0, 1)
    stop, second_stop = last_step // 3, 2 * last_step // 3
    parts = [(0, stop, 2), (stop, second_stop, 1), (second_stop, last_step, 4)]
    tasks = [(packed, first, last, rank, world) for first, last, world in parts for rank in range(world)]
    with fork_context().Pool(2, maxtasksperchild=1) as pool:
        read = iter(pool.starmap(consume, tasks, chunksize=1))
    log = []
    for _, _, world in parts:
        ranks = [next(read) for _ in range(world)]
        log += [[pair for rank in step for pair in rank] for step in zip(*ranks, strict=True)]
    assert log == whole
    times = Counter(pair for step in log for pair in step)
    assert set(times.values()) == {1}
    assert [sum(epoch == e for epoch, _ in times) for e in range(EPOCHS)] == [order.samples] * EPOCHS
