"""The laws of siblings: of one patient or study, within split and fraction, by seed, epoch and sample alone."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.arrays import Records
from infra.errors import UserError
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Same, Siblings
from sharding.reading.stream import EncodedBatch, packed_metadata, sample_batches, sample_order
from tests.support.fault_server import serving
from tests.support.follow_ups import pack_follow_ups, write_follow_ups

SAME = st.sampled_from(["study", "patient"])
SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 1000)
PARTS: list[tuple[list[str], int]] = [([], 100), (["train"], 100), (["test"], 100), (["train"], 10), ([], 10), ([], 1)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("follow-ups")
    return pack_follow_ups(write_follow_ups(root / "raw", patients=20), root / "packed")


@pytest.fixture(scope="module")
def repacked(packed: Path) -> ShardSet:
    """The same images in other shards, another order and other fractions."""
    return ShardSet([pack_follow_ups(packed.parent / "raw", packed.parent / "repacked", shard_size_mb=0.01, seed=1)])


@pytest.fixture(scope="module")
def parts(packed: Path) -> list[ShardSet]:
    return [ShardSet([packed], *part) for part in PARTS]


def everything(shards: ShardSet, epoch: int, numbers: Sequence[int] | None = None) -> Positions:
    """Return the positions of all samples, or of those with these numbers."""
    chosen = np.arange(shards.samples) if numbers is None else np.asarray(numbers, np.int64)
    return Positions(np.full(len(chosen), epoch), *shards.locate(chosen))


def drawn(shards: ShardSet, same: Same, probability: float, seed: int, positions: Positions) -> dict[int, int]:
    """Return the identity of each drawn sibling by that of the sample."""
    siblings = Siblings(shards, same, probability, seed).draw(positions)
    samples = rows_at(shards, positions)["sample"][siblings.items]
    return dict(zip(samples.tolist(), rows_at(shards, siblings.positions)["sample"].tolist(), strict=True))


def rows_at(shards: ShardSet, positions: Positions) -> Records:
    return shards.whole_index()[np.cumsum([0, *shards.shard_samples])[positions.shard] + positions.row]


@settings(max_examples=15)
@given(st.integers(0, len(PARTS) - 1), SAME, st.floats(0, 1), SEEDS, EPOCHS)
def test_sibling_is_another_image_of_the_same_study_or_patient_and_split(
    parts: list[ShardSet], part: int, same: Same, probability: float, seed: int, epoch: int
) -> None:
    shards = parts[part]
    positions = everything(shards, epoch)
    siblings = Siblings(shards, same, probability, seed).draw(positions)
    samples, others = rows_at(shards, positions)[siblings.items], rows_at(shards, siblings.positions)
    assert (samples["patient"] == others["patient"]).all()
    assert same == "patient" or (samples["study"] == others["study"]).all()
    assert (samples["sample"] != others["sample"]).all()
    splits = np.array([str(shard.split) for shard in shards.shards])
    assert (splits[positions.shard[siblings.items]] == splits[siblings.positions.shard]).all()
    assert siblings.positions.epoch.tolist() == [epoch] * len(siblings.items)


@settings(max_examples=6)
@given(SAME, st.floats(0, 1), SEEDS, EPOCHS, st.randoms(use_true_random=False))
def test_draw_depends_on_seed_epoch_and_sample_alone(
    parts: list[ShardSet], repacked: ShardSet, same: Same, probability: float, seed: int, epoch: int, shuffled: Any
) -> None:
    whole = drawn(parts[0], same, probability, seed, everything(parts[0], epoch))
    for shards in (*parts[1:], repacked):
        expected = {sample: other for sample, other in whole.items() if sample in shards.whole_index()["sample"]}
        assert drawn(shards, same, probability, seed, everything(shards, epoch)) == expected
    numbers = list(range(parts[0].samples))
    shuffled.shuffle(numbers)
    batches = [numbers[:7], numbers[7:8], numbers[8:]]
    together: dict[int, int] = {}
    for batch in batches:
        together |= drawn(parts[0], same, probability, seed, everything(parts[0], epoch, batch))
    assert together == whole


@settings(max_examples=10)
@given(SEEDS, st.integers(0, 100))
def test_siblings_with_days_are_all_images_of_the_patient_that_are_close_enough(
    parts: list[ShardSet], seed: int, most_days: int
) -> None:
    shards = parts[1]
    rows = shards.whole_index()
    days = np.array([metadata.get("day", np.nan) for metadata in packed_metadata(shards)])
    siblings = Siblings(shards, "patient", 1, seed, days, most_days)
    close = (rows["patient"][:, None] == rows["patient"]) & (np.abs(days[:, None] - days) <= most_days)
    np.fill_diagonal(close, val=False)
    assert siblings.has_any.tolist() == close.any(axis=1).tolist()
    for epoch in range(5):
        items, positions = siblings.draw(everything(shards, epoch))
        assert items.tolist() == np.flatnonzero(close.any(axis=1)).tolist()
        others = np.cumsum([0, *shards.shard_samples])[positions.shard] + positions.row
        assert close[items, others].all()


def test_all_siblings_come_equally_often_and_as_often_as_asked(parts: list[ShardSet]) -> None:
    shards, epochs = parts[1], 400
    rows = shards.whole_index()
    siblings = Siblings(shards, "patient", 0.5, seed=1)
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for epoch in range(epochs):
        items, positions = siblings.draw(everything(shards, epoch))
        others = rows_at(shards, positions)["sample"].tolist()
        for sample, other in zip(rows["sample"][items].tolist(), others, strict=True):
            counts[sample][other] += 1
    patients = Counter(rows["patient"].tolist())
    assert siblings.has_any.tolist() == [patients[patient] > 1 for patient in rows["patient"].tolist()]
    assert 0 < siblings.has_any.sum() < shards.samples
    for sample, patient in zip(rows["sample"].tolist(), rows["patient"].tolist(), strict=True):
        choices = patients[patient] - 1
        assert len(counts[sample]) == choices
        for count in counts[sample].values():  # within five standard deviations of a binomial
            share = 0.5 / choices
            assert abs(count - epochs * share) < 5 * (epochs * share * (1 - share)) ** 0.5


def test_sample_that_two_folders_hold_is_no_sibling_of_itself(packed: Path, repacked: ShardSet) -> None:
    once, twice = ShardSet([packed]), ShardSet([packed, repacked.folders[0]])
    assert Siblings(twice, "study", 1, seed=0).has_any.tolist().count(True) == 2 * int(
        Siblings(once, "study", 1, seed=0).has_any.sum()
    )
    for epoch in range(3):
        whole = drawn(once, "study", 1, 0, everything(once, epoch))
        assert drawn(twice, "study", 1, 0, everything(twice, epoch)) == whole


def pairs(batch: EncodedBatch) -> list[tuple[int, int, int]]:
    """Return epoch, sample and sibling of the samples that show one."""
    items = batch.siblings.items
    shown = (batch.epochs[items], batch.rows["sample"][items], batch.siblings.rows["sample"])
    return list(zip(*(values.tolist() for values in shown), strict=True))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_stream_resumed_at_any_world_size_reads_the_same_siblings(parts: list[ShardSet], world: int) -> None:
    shards = parts[0]
    order = sample_order(shards, DataConfig(["x"], global_batch=8, lanes=4, shuffle_window=16), seed=3)
    siblings = Siblings(shards, "patient", 0.7, seed=3)
    with closing(sample_batches(shards, order, siblings=siblings)) as stream:
        undisturbed = list(islice(stream, 20))
    with closing(sample_batches(shards, order)) as stream:  # siblings change neither the order nor a sample
        for batch, plain in zip(undisturbed, stream, strict=False):
            assert batch.rows.tolist() == plain.rows.tolist()
            assert [image.tobytes() for image in batch.encoded] == [image.tobytes() for image in plain.encoded]
            assert not len(plain.siblings.items)
    ranks = []
    for rank in range(world):
        resumed = sample_batches(
            shards, order, first_step=5, rank=rank, world=world, siblings=Siblings(shards, "patient", 0.7, seed=3)
        )
        with closing(resumed):
            ranks.append(list(islice(resumed, 15)))
    for batch, *shares in zip(undisturbed[5:], *ranks, strict=True):
        assert [pair for share in shares for pair in pairs(share)] == pairs(batch)
    packed = {
        int(row["sample"]): shards.read(shard, number).tobytes()
        for shard in range(len(shards.shards))
        for number, row in enumerate(shards.index(shard))
    }
    shown = [
        (image.tobytes(), int(row["sample"])) for b in undisturbed for _, image, row in zip(*b.siblings, strict=True)
    ]
    assert len(shown) > 50
    assert all(image == packed[sample] for image, sample in shown)


def test_damaged_sibling_masks_the_samples_that_show_it_and_is_named(
    packed: Path, parts: list[ShardSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = parts[0]
    siblings = Siblings(whole, "study", 1, seed=0)
    number = int(np.flatnonzero(siblings.has_any)[0])
    shard, row = (int(place) for place in whole.locate(number))
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    path = copy / whole.shards[shard].name
    content = bytearray(path.read_bytes())
    content[int(whole.row(shard, row)["image_offset"]) + 40] ^= 255
    path.write_bytes(content)
    bad = int(whole.row(shard, row)["sample"])

    shards = ShardSet([copy])
    order = sample_order(shards, DataConfig(["x"], global_batch=8, lanes=4, shuffle_window=16), seed=3)
    with closing(sample_batches(shards, order, siblings=Siblings(shards, "study", 1, seed=0))) as stream:
        batches = list(islice(stream, order.first_step_after_epoch(0)))
    masked = {int(sample) for batch in batches for sample in batch.rows["sample"][~batch.valid]}
    showing = {sample for batch in batches for _, sample, other in pairs(batch) if other == bad}
    assert showing
    assert masked == {bad} | showing
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: sample")]
    assert {line.split(" does not match")[0] for line in warnings} == {f"warning: sample {row} of {path}"}
    assert any("the sample whose second view shows it is masked in step" in line for line in warnings)


def test_siblings_of_a_remote_set_are_read_through_a_cache_that_holds_all_of_it(packed: Path, tmp_path: Path) -> None:
    local = ShardSet([packed])
    order = sample_order(local, DataConfig(["x"], global_batch=8, lanes=4, shuffle_window=16), seed=3)

    def first_pairs(shards: ShardSet) -> list[Any]:
        with closing(sample_batches(shards, order, siblings=Siblings(shards, "patient", 1, seed=0))) as stream:
            return [
                (pairs(batch), [image.tobytes() for image in batch.siblings.encoded]) for batch in islice(stream, 6)
            ]

    with serving(packed.parent) as server:
        assert first_pairs(ShardSet([f"{server.url}/packed"], fetch=FetchConfig(tmp_path / "cache"))) == first_pairs(
            local
        )
        small = ShardSet([f"{server.url}/packed"], fetch=FetchConfig(tmp_path / "small", limit_gb=100e-6))
        sample_batches(small, order, world=4)
        message = (
            rf"^limit_gb=0\.0001 is less than the .* GB that second views of siblings read \(all {len(local.shards)} "
        )
        with pytest.raises(UserError, match=message):
            sample_batches(small, order, world=4, siblings=Siblings(small, "patient", 1, seed=0))
