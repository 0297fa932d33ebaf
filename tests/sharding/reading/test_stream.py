import dataclasses
import json
import os
import shutil
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sharding.reading.shard_set
from infra.errors import RunFailed, UserError
from infra.rng import stable_hash
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.manifests import read_manifest
from sharding.reading.prefetch import Prefetcher, largest_bytes
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import BLANK, EncodedBatch, packed_batches, packed_metadata, sample_batches, sample_order
from sharding.simulation.datasets import write_cell
from tests.support.fault_server import Fault, first_bytes, serving
from tests.support.manifests import write_manifest


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
    order = sample_order(shards, DataConfig([str(packed)], global_batch=8, lanes=4, shuffle_window=16), seed=3)
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


def flip_a_bit(folder: Path, shards: ShardSet, shard: int, row: int) -> Path:
    index = shards.row(shard, row)
    path = folder / shards.shards[shard].name
    with path.open("r+b") as file:
        file.seek(int(index["image_offset"]) + int(index["image_bytes"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return path


def test_damaged_sample_is_masked_alone_and_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ShardSet([copied])
    order = sample_order(shards, DataConfig([str(copied)], global_batch=4, lanes=4), seed=0)
    with closing(sample_batches(shards, order)) as stream:
        undisturbed = list(islice(stream, 5))
    damaged = order.batch(3)
    shard, row = int(damaged.shard[2]), int(damaged.row[2])
    path = flip_a_bit(copied, shards, shard, row)
    with closing(sample_batches(shards, order)) as stream:
        got = list(islice(stream, 5))
    for before, after in zip(undisturbed, got, strict=True):
        assert after.valid.tolist() == [(after.step, item) != (3, 2) for item in range(4)]
        for place in range(4):
            content = before.encoded[place] if after.valid[place] else BLANK
            assert after.encoded[place].tobytes() == content.tobytes()
            assert after.rows[place]["sample"] == before.rows[place]["sample"]
        assert after.rows[after.valid].tolist() == before.rows[after.valid].tolist()
    blank = Image.open(BytesIO(BLANK.tobytes()))
    assert blank.mode == "L"
    assert got[3].rows[2][["height", "width"]].tolist() == (blank.height, blank.width)
    printed = capsys.readouterr().err
    assert f"sample {row} of {path} does not match its checksum" in printed
    assert f"sternum verify {copied}; it is masked in step 3" in printed


def test_damaged_sample_stops_probing(copied: Path) -> None:
    shards = ShardSet([copied])
    path = flip_a_bit(copied, shards, 1, 0)
    got = []
    with pytest.raises(RunFailed, match=rf"sample 0 of {path} does not match .*sternum verify {copied}$"):
        for batch in packed_batches(shards, 2):
            got += batch.rows.tolist()
    assert len(got) == 2 * (shards.shard_samples[0] // 2)


def test_shard_that_vanishes_stops_the_stream_and_names_step(copied: Path) -> None:
    shards = ShardSet([copied])
    order = sample_order(shards, DataConfig([str(copied)], global_batch=4, lanes=4), seed=0)
    gone = int(order.batch(0).shard[0])
    (copied / shards.shards[gone].name).unlink()
    with pytest.raises(
        RunFailed, match=rf"{shards.shards[gone].name} cannot be opened: No such file.*; step 0 needs it$"
    ):
        next(sample_batches(shards, order))


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
    stream = sample_batches(shards, sample_order(shards, DataConfig([str(packed)], global_batch=4, lanes=4), seed=0))
    next(stream)
    stream.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_open_files_are_bounded(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.reading.shard_set, "_OPEN_SHARDS", 2)
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
        ({"shards": []}, r"^shards=\[\] must name a folder"),
        ({"fraction_percent": 50}, r"^fraction_percent=50 must be one of \(1, 10, 100\)"),
        ({"max_masked_percent": -1.0}, r"^max_masked_percent=-1\.0 must be between 0 and 100; try 0\.1"),
        ({"lanes": 12}, r"^lanes=12 must divide global_batch=256; try 8 or 16"),
    ],
)
def test_data_config_names_value_rule_and_fix(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**{"shards": ["packed"], **arguments})  # type: ignore[arg-type]


def test_folder_named_twice_or_without_the_split_is_refused(packed: Path) -> None:
    with pytest.raises(UserError, match="2 times; name each folder once"):
        ShardSet([packed, packed / ".." / packed.name])
    with pytest.raises(UserError, match="split 'val' is not in dataset 'cell'"):
        ShardSet([packed], ["val"])
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        ShardSet([packed.parent])


def contents(batches: list[EncodedBatch]) -> list[Any]:
    return [
        (batch.step, batch.rows.tolist(), batch.epochs.tolist(), [image.tobytes() for image in batch.encoded])
        for batch in batches
    ]


def test_remote_set_equals_the_local_one(packed: Path, tmp_path: Path) -> None:
    local = ShardSet([packed])
    data = DataConfig([str(packed)], global_batch=8, lanes=4, shuffle_window=16)
    order = sample_order(local, data, seed=3)
    with serving(packed.parent) as server:
        remote = ShardSet([f"{server.url}/packed"], fetch=FetchConfig(cache_folder=tmp_path))
        assert remote.identity == local.identity
        assert (remote.pixel_mean, remote.pixel_std) == (local.pixel_mean, local.pixel_std)
        # A run may go on elsewhere, on another number of ranks.
        with closing(sample_batches(local, order)) as stream:
            undisturbed = list(islice(stream, 20))
        parts = []
        for rank in range(2):
            with closing(sample_batches(remote, order, first_step=5, rank=rank, world=2, local_world=2)) as stream:
                parts.append(list(islice(stream, 15)))
        for batch, *ranks in zip(undisturbed[5:], *parts, strict=True):
            assert contents([batch])[0][3] == [content for part in ranks for content in contents([part])[0][3]]
            assert np.concatenate([part.rows for part in ranks]).tolist() == batch.rows.tolist()
        assert contents(list(packed_batches(remote, 20))) == contents(list(packed_batches(local, 20)))
        assert list(packed_metadata(remote)) == list(packed_metadata(local))
        assert [remote.key(1, 0), *remote.index(0).tolist()] == [local.key(1, 0), *local.index(0).tolist()]
        # A stream that closes early stops its downloads, and the next one continues them: no byte is sent twice.
        assert all(first_bytes(server.gets(f"/packed/{shard.name}")).count(0) == 1 for shard in local.shards)
        stats = remote.stats()
    assert stats.shards_fetched == len(local.shards)
    assert stats.cache_hits > 0
    assert stats.retries == 0
    read = [path for path in packed.iterdir() if not path.name.endswith(".fingerprints.npy")]  # training needs none
    assert stats.bytes_fetched == sum(path.stat().st_size for path in read)
    assert local.stats() == (0, 0, 0, 0)


def test_index_alone_is_read_without_its_shard(packed: Path, tmp_path: Path) -> None:
    with serving(packed.parent) as server:
        shards = ShardSet([f"{server.url}/packed"], fetch=FetchConfig(cache_folder=tmp_path))
        assert sum(len(shards.index(number)) for number in range(len(shards.shards))) == shards.samples
        assert not any(request.path.endswith(".tar") for request in server.requests)


def test_shards_of_later_steps_are_prefetched_and_released_after_use(packed: Path, tmp_path: Path) -> None:
    fetch = FetchConfig(cache_folder=tmp_path, connections=2)
    with serving(packed.parent) as server:
        shards = ShardSet([f"{server.url}/packed"], fetch=fetch)
        names = [f"/packed/{shard.name}" for shard in shards.shards]
        prefetcher = Prefetcher(shards, budget_bytes=largest_bytes(shards, 3), most_items=100)
        steps = prefetcher.walk(range(len(names)), lambda shard: [shard])
        assert next(steps) == 0
        deadline_s = time.monotonic() + 60
        while not (server.gets(names[0]) and server.gets(names[1])) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert [bool(server.gets(name)) for name in [*names[:2], *names[5:]]] == [True] * 2 + [False] * len(names[5:])
        assert list(steps) == list(range(1, len(names)))
        assert shards.stats().cache_hits == 0
        prefetcher.close()
    while any(str(tmp_path) in os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_closing_the_stream_does_not_wait_for_a_silent_server(packed: Path, tmp_path: Path) -> None:
    fetch = FetchConfig(cache_folder=tmp_path, stall_s=1000, total_s=2000)
    with serving(packed.parent) as server:
        shards = ShardSet([f"{server.url}/packed"], fetch=fetch)
        order = sample_order(shards, DataConfig(["x"], global_batch=4, lanes=1, shuffle_window=1), seed=0)
        needed = set(order.batch(0).shard.tolist())
        for shard in set(range(len(shards.shards))) - needed:
            server.always(f"/packed/{shards.shards[shard].name}", Fault("silent", 100))
        stream = sample_batches(shards, order)
        next(stream)
        stream.close()  # else the test runs into its time limit
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_missing_shard_stops_the_stream_where_it_is_needed(packed: Path, tmp_path: Path) -> None:
    with serving(packed.parent) as server:
        shards = ShardSet([f"{server.url}/packed"], fetch=FetchConfig(cache_folder=tmp_path))
        order = sample_order(shards, DataConfig(["x"], global_batch=2, lanes=2, shuffle_window=4), seed=1)
        of_steps = [set(order.batch(step).shard.tolist()) for step in range(20)]
        step = next(step for step in range(20) if not of_steps[step] <= of_steps[0])
        (missing,) = of_steps[step] - of_steps[0]
        name = shards.shards[missing].name
        server.always(f"/packed/{name}", Fault("status", 404))
        got = []
        with pytest.raises(
            RunFailed, match=rf"^{server.url}/packed/{name} cannot be downloaded: 404 .*; step {step} needs it$"
        ):
            for batch in sample_batches(shards, order):
                got.append(batch.step)
    assert got == list(range(step))


def test_cache_that_is_too_small_for_the_lanes_of_the_machine_is_refused(packed: Path, tmp_path: Path) -> None:
    with serving(packed.parent) as server:
        shards = ShardSet([f"{server.url}/packed"], fetch=FetchConfig(cache_folder=tmp_path, limit_gb=150e-6))
        order = sample_order(shards, DataConfig(["x"], global_batch=8, lanes=8, shuffle_window=8), seed=0)
        sample_batches(shards, order, world=4)
        message = r"^limit_gb=0\.00015 is less than the [0-9.]+ GB that 4 lanes of this machine read \(8 shards, "
        with pytest.raises(UserError, match=message + r".* try limit_gb=0\.00"):
            sample_batches(shards, order, world=4, local_world=2)
        whole = sample_order(shards, DataConfig(["x"], global_batch=8, lanes=8, shuffle_window=100), seed=0)
        with pytest.raises(UserError, match=rf"{len(shards.shards)} shards"):
            sample_batches(shards, whole, world=8)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "path": (lambda m: m["shards"][0].update(name="../other/a.tar"), r"shards\[0\]\.name='\.\./other/a\.tar' must be"),
    "hidden": (lambda m: m["shards"][0].update(name=".tar"), r"shards\[0\]\.name='\.tar' must be"),
    "twice": (lambda m: m["shards"][1].update(name=m["shards"][0]["name"]), r"shards\[1\]\.name=.* occurs twice"),
    "negative": (lambda m: m["shards"][2].update(samples=-4), r"shards\[2\]\.samples=-4 do not fit"),
    "huge": (lambda m: m["shards"][2].update(samples=10**9), r"shards\[2\]\.samples=1000000000 do not fit"),
    "size": (lambda m: m["shards"][0].update(size_bytes=-1), r"shards\[0\]\.size_bytes=-1 must be positive"),
    "hash": (lambda m: m["shards"][0].update(sha256="AB"), r"shards\[0\]\.sha256='AB' must be 64"),
    "long": (lambda m: m["shards"][0].update(name="a" * 9000), r"shards\[0\]\.name='a{100}\.\.\.' must be"),
    "tier": (lambda m: m["shards"][0].update(tier_percent=50), r"tier_percent=50 must be one of"),
    "sum": (lambda m: m["shards"][0].update(samples=1), r"samples=52, but its shards hold"),
    "patients": (lambda m: m.update(patients=99), "patients=99 does not fit 52 samples"),
    "mean": (lambda m: m.update(pixel_mean=128.0), r"pixel_mean=128\.0 must be between 0 and 1"),
    "type": (
        lambda m: m["shards"][0].update(samples="4"),
        r"Expected `int`, got `str` - at `\$\.shards\[0\]\.samples`",
    ),
    "missing": (lambda m: m["shards"][0].pop("sha256"), "missing required field `sha256`"),
    "version": (lambda m: m.update(version=9), "has version 9, this Sternum reads 1"),
}


@pytest.mark.parametrize("name", EDITS)
def test_manifest_edited_by_hand_is_refused_in_one_line(copied: Path, tmp_path: Path, name: str) -> None:
    change, message = EDITS[name]
    edit(copied, change)
    with pytest.raises(UserError, match=message) as caught:
        ShardSet([copied])
    assert str(caught.value).startswith(str(copied / "manifest.json"))
    assert "\n" not in str(caught.value)
    with serving(copied.parent) as server, pytest.raises(UserError, match=message) as caught:
        ShardSet([f"{server.url}/{copied.name}"], fetch=FetchConfig(cache_folder=tmp_path / "cache"))
    assert str(caught.value).startswith(f"{server.url}/{copied.name}/manifest.json")


def write_index(folder: Path, rows: Any) -> str:
    """Give the first shard another index, and the manifest its hash."""
    shard = read_manifest(folder).shards[0]
    np.save(folder / shard.index_name, rows)
    digest = sha256((folder / shard.index_name).read_bytes()).hexdigest()
    edit(folder, lambda manifest: manifest["shards"][0].update(index_sha256=digest))
    return shard.index_name


def changed(rows: Any, field: str, value: int) -> Any:
    rows = rows.copy()
    rows[field][1] = value
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"has \d+ rows, manifest.json says \d+ samples"),
        (lambda rows: changed(rows, "image_offset", 2**63), "row 1: .* are not within"),
        (lambda rows: changed(rows, "meta_bytes", 2**31), "row 1: 2147483648 bytes .* are not within"),
        (lambda rows: changed(rows, "meta_offset", 0), "row 1: .* from offset 0 are not within"),
        (lambda rows: changed(rows, "height", 0), r"row 1: no packed image has \d+ x 0 px; the limit is 64 megapixels"),
        (lambda rows: changed(rows, "width", 65501), "row 1: no packed image has 65501 x"),
        (
            lambda rows: changed(changed(rows, "width", 8001), "height", 8001),
            "row 1: no packed image has 8001 x 8001 px; the limit is 64 megapixels and 65500 px a side; pack",
        ),
        (lambda rows: rows["sample"], "is not an index of a shard"),
        (lambda rows: rows[None], "is not an index of a shard"),
    ],
)
def test_index_that_does_not_fit_its_shard_is_refused(copied: Path, change: Callable[[Any], Any], message: str) -> None:
    name = write_index(copied, change(ShardSet([copied]).index(0)))
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        ShardSet([copied]).read(0, 0)


def with_metadata(folder: Path, content: bytes) -> None:
    """Give the first sample other metadata, and the index and the manifest their checksums."""
    shard = read_manifest(folder).shards[0]
    rows = ShardSet([folder]).index(0).copy()
    offset = int(rows["meta_offset"][0])
    path = folder / shard.name
    tar = bytearray(path.read_bytes())
    tar[offset : offset + len(content)] = content
    path.write_bytes(tar)
    rows["meta_bytes"][0], rows["meta_crc32"][0] = len(content), zlib.crc32(content)
    write_index(folder, rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"patient":"p"}', "missing required field"),
        (b'{"patient":7}', "Expected `str`, got `int`"),
        (b'{"patient":"\xff"}', "its text is not UTF-8"),
        (b"[" * 400, "."),
        (b"{}]", "."),
    ],
)
def test_sample_with_unusable_metadata_is_named(copied: Path, content: bytes, message: str) -> None:
    with_metadata(copied, content)
    with pytest.raises(RunFailed, match=rf"^sample 0 of {copied}/.* has unusable metadata: .*{message}") as caught:
        list(packed_metadata(ShardSet([copied])))
    assert "\n" not in str(caught.value)
