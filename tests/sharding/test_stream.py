import dataclasses
import os
import shutil
import tarfile
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import sharding.stream
from infra.errors import RunFailed, UserError
from infra.rng import stable_hash
from sharding.datasets.simulated import write_cell
from sharding.manifest import read_manifest, write_manifest
from sharding.pack import PackConfig, pack
from sharding.stream import DataConfig, ShardSet, packed_batches, sample_batches, sample_order


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cell")
    write_cell(root / "raw", {"train": 40, "test": 12}, seed=0, size_px=64)
    pack(PackConfig("cell", root / "raw", root / "packed", shorter_side_px=64, shard_size_mb=0.03, workers=1))
    return root / "packed"


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "packed"))


def test_shard_set_reads_what_the_tars_hold(packed: Path) -> None:
    shards = ShardSet([packed])
    assert shards.samples == 52
    assert len(shards.shards) > 3
    for number, shard in enumerate(shards.shards):
        with tarfile.open(packed / shard.name) as tar:
            images = [member for member in tar if member.name.endswith(".jpg")]
            assert len(images) == shards.shard_samples[number]
            for row, member in enumerate(images):
                content = tar.extractfile(member)
                assert content is not None
                assert shards.read(number, row).tobytes() == content.read()
                assert shards.metadata(number, row)["split"] == shard.split


def test_rows_carry_the_identities_of_the_packed_samples(packed: Path) -> None:
    batches = list(packed_batches(ShardSet([packed]), 20))
    assert [len(batch.encoded) for batch in batches] == [20, 20, 12]
    samples = np.concatenate([batch.rows["sample"] for batch in batches]).tolist()
    keys = []
    for path in (packed / shard.name for shard in ShardSet([packed]).shards):
        with tarfile.open(path) as tar:
            keys += [name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg")]
    assert samples == [stable_hash(f"cell/{key}") for key in keys]


def test_splits_and_fraction_choose_shards(packed: Path) -> None:
    assert ShardSet([packed], ["test"]).samples == 12
    assert ShardSet([packed], ["train", "test"]).samples == 52
    tenth = ShardSet([packed], ["train"], 10)
    assert 0 < tenth.samples < 40
    assert {shard.tier_percent for shard in tenth.shards} <= {1, 10}
    assert tenth.identity != ShardSet([packed], ["train"]).identity


def test_pixel_statistics_are_those_of_the_mixture(copied: Path, packed: Path) -> None:
    manifest = read_manifest(copied)
    write_manifest(copied, dataclasses.replace(manifest, pixel_mean=0.25, pixel_std=0.1))
    other = read_manifest(packed)
    shards = ShardSet([packed, copied], ["test"])
    assert shards.samples == 24
    mean = (other.pixel_mean + 0.25) / 2
    square = (other.pixel_std**2 + other.pixel_mean**2 + 0.1**2 + 0.25**2) / 2
    assert shards.pixel_mean == pytest.approx(mean)
    assert shards.pixel_std == pytest.approx((square - mean**2) ** 0.5)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_stream_resumed_at_any_world_size_is_the_undisturbed_one(packed: Path, world: int) -> None:
    shards = ShardSet([packed])
    order = sample_order(shards, DataConfig([packed], global_batch=8, lanes=4, shuffle_window=16), seed=3)
    undisturbed = list(islice(sample_batches(shards, order), 20))
    assert {int(epoch) for batch in undisturbed for epoch in batch.epochs} == {0, 1, 2, 3}
    parts = [
        list(islice(sample_batches(shards, order, first_step=5, rank=rank, world=world), 15)) for rank in range(world)
    ]
    for batch, *ranks in zip(undisturbed[5:], *parts, strict=True):
        assert {part.step for part in ranks} == {batch.step}
        assert np.concatenate([part.rows for part in ranks]).tolist() == batch.rows.tolist()
        assert np.concatenate([part.epochs for part in ranks]).tolist() == batch.epochs.tolist()
        encoded = [image.tobytes() for part in ranks for image in part.encoded]
        assert encoded == [image.tobytes() for image in batch.encoded]


def test_damaged_byte_stops_the_stream_and_names_shard_and_sample(copied: Path) -> None:
    shards = ShardSet([copied])
    order = sample_order(shards, DataConfig([copied], global_batch=4, lanes=4), seed=0)
    bad = order.batch(3)
    shard, row = int(bad.shard[2]), int(bad.row[2])
    index = shards.rows(bad)[2]
    path = copied / shards.shards[shard].name
    with path.open("r+b") as file:
        file.seek(int(index["image_offset"]) + int(index["image_bytes"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    got = []
    with pytest.raises(RunFailed, match=rf"sample {row} of .*{path.name} does not match .*sternum verify {copied}$"):
        for batch in sample_batches(shards, order):
            got.append(batch.step)
    assert got == [0, 1, 2]


def test_shard_cut_after_the_start_is_found(copied: Path) -> None:
    shards = ShardSet([copied])
    os.truncate(copied / shards.shards[0].name, 600)
    with pytest.raises(RunFailed, match=r"sample 0 of .* does not match its checksum"):
        shards.read(0, 0)


@pytest.mark.parametrize("cut", [True, False])
def test_shard_that_is_not_the_manifests_is_refused(copied: Path, cut: bool) -> None:
    path = copied / read_manifest(copied).shards[1].name
    if cut:
        os.truncate(path, path.stat().st_size - 512)
    else:
        path.unlink()
    with pytest.raises(UserError, match=f"{path.name}.*pack the dataset again"):
        ShardSet([copied])


def test_edited_index_is_refused_by_the_stream(copied: Path) -> None:
    shards = ShardSet([copied])
    path = copied / shards.shards[0].index_name
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UserError, match=f"{path.name} is not the file that manifest.json describes"):
        next(packed_batches(shards, 4))


def test_closing_the_stream_ends_its_thread(packed: Path) -> None:
    shards = ShardSet([packed])
    stream = sample_batches(shards, sample_order(shards, DataConfig([packed], global_batch=4, lanes=4), seed=0))
    next(stream)
    stream.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_open_files_are_bounded(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.stream, "_OPEN_SHARDS", 2)
    shards = ShardSet([packed])
    tars = []
    for number in range(len(shards.shards)):
        shards.read(number, 0)
        targets = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        tars.append(sum(target.startswith(str(packed)) for target in targets))
    assert max(tars) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shards": []}, r"data\.shards=\[\] must name a folder"),
        ({"fraction_percent": 50}, r"data\.fraction_percent=50 must be one of \(1, 10, 100\)"),
        ({"lanes": 12}, r"data\.lanes=12 must divide data\.global_batch=256; try 8 or 16"),
    ],
)
def test_data_config_names_value_rule_and_fix(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**{"shards": [Path("packed")], **arguments})  # type: ignore[arg-type]


def test_folder_named_twice_or_without_the_split_is_refused(packed: Path) -> None:
    with pytest.raises(UserError, match="2 times; name each folder once"):
        ShardSet([packed, packed / ".." / packed.name])
    with pytest.raises(UserError, match="split 'val' is not in dataset 'cell'"):
        ShardSet([packed], ["val"])
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        ShardSet([packed.parent])
