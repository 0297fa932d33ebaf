from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from infra.rng import stable_hash
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.packing.catalog import Catalog, from_record

samples = st.builds(
    Sample,
    key=st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True),
    path=st.sampled_from([Path("a/b.jpg"), Path("\u00e9.png")]),
    patient=st.sampled_from([f"patient{i}" for i in range(30)]),
    age=st.none() | st.floats(0, 120),
    split=st.sampled_from(["train", "val", "test", None]),
    labels=st.dictionaries(st.text(max_size=4), st.sampled_from([1, 0, -1, None]), max_size=3),
)
datasets = st.lists(samples, max_size=40, unique_by=lambda sample: sample.key)


def catalog(items: Sequence[Sample | Rejection], seed: int = 0) -> Catalog:
    return Catalog("set", items, seed)


def ordered(items: list[Sample], seed: int = 0, start: int = 0) -> list[Sample]:
    with closing(catalog(items, seed)) as found:
        return [from_record(row) for row in found.records(start)]


@given(datasets, st.integers(0, 2**40), st.integers(0, 40))
def test_catalog_returns_every_sample_in_an_order_that_does_not_depend_on_the_reader(
    items: list[Sample], seed: int, start: int
) -> None:
    found = ordered(items, seed)
    assert sorted(found, key=lambda sample: sample.key) == sorted(items, key=lambda sample: sample.key)
    assert ordered(items[::-1], seed, start) == found[start:]


@given(datasets)
def test_catalog_groups_by_split_and_tier_and_has_the_patients(items: list[Sample]) -> None:
    with closing(catalog(items)) as found:
        samples = [from_record(row) for row in found.records(0)]
        groups = [found.group(position) for position in range(len(found))]
        assert [split for split, _ in groups] == [sample.split for sample in samples]
        rank = {"train": 0, "val": 1, "test": 2, None: 3}
        assert groups == sorted(groups, key=lambda group: (rank[group[0]], group[1]))
        assert found.patients.tolist() == [stable_hash(f"set/{sample.patient}") for sample in samples]


def test_hash_tells_samples_and_rejections_apart_but_not_their_listing() -> None:
    one, two = Sample("one", Path("a"), "p"), Sample("two", Path("b"), "p")
    no = Rejection("c", "why")
    listings: list[list[Sample | Rejection]] = [
        [one, two, no],
        [no, two, one],
        [one, two],
        [one, no],
        [one, Sample("two", Path("b"), "q"), no],
    ]
    hashes = []
    for items in listings:
        with closing(catalog(items)) as found:
            hashes.append(found.sha256)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_samples_keep_their_order_among_each_other_when_others_are_added() -> None:
    items = [Sample(f"key{i}", Path(f"{i}"), f"patient{i}") for i in range(200)]
    before = [sample.key for sample in ordered(items[:199])]
    after = [sample.key for sample in ordered(items) if sample.key != "key199"]
    assert sum(a != b for a, b in zip(before, after, strict=True)) < 100  # one patient may change its tier
    assert np.mean([abs(after.index(key) - place) for place, key in enumerate(before)]) < 3


def test_catalog_names_both_files_when_they_have_the_same_key() -> None:
    with pytest.raises(UserError, match="a and b have the same key, 'one'; remove one of them"):
        catalog([Sample("one", Path("a"), "p"), Sample("one", Path("b"), "p")])
