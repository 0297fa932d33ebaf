import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from sharding.format.label_counts import LabelCounts
from sharding.format.manifest import Manifest
from sharding.packing.pack import PackConfig, pack
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest
from tests.support.manifests import write_manifest


@pytest.fixture
def folder(cell_root: Path, tmp_path: Path) -> Path:
    pack(PackConfig("cell", cell_root, tmp_path / "shards", shorter_side_px=32, shard_size_mb=0.03, workers=1))
    return tmp_path / "shards"


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_finds_nothing_when_the_folder_is_whole(folder: Path, workers: int) -> None:
    assert verify(folder, workers) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6))
def test_verify_finds_a_flipped_bit_wherever_it_is(folder: Path, manifest: Manifest, position: int) -> None:
    path = folder / manifest.shards[-1].name
    position %= path.stat().st_size
    flip(path, position)
    differences = verify(folder, workers=1)
    flip(path, position)
    assert any(difference.startswith(f"{path.name} does not match its sha256") for difference in differences)
    assert verify(folder, workers=1) == []


def test_verify_names_the_member_when_its_bytes_differ(folder: Path, manifest: Manifest) -> None:
    shard = manifest.shards[0]
    flip(folder / shard.name, 700)
    _, samples = verify(folder, workers=1)
    assert samples.startswith(f"{shard.name}: 1 of {shard.samples} samples differ; the first: sample 0: train_")
    assert samples.endswith(".jpg does not match its checksum")


def test_verify_finds_a_missing_shard_and_a_missing_index(folder: Path, manifest: Manifest) -> None:
    (folder / manifest.shards[0].name).unlink()
    (folder / manifest.shards[1].index_name).unlink()
    differences = verify(folder, workers=1)
    assert differences[:2] == [f"{manifest.shards[0].name} is missing", f"{manifest.shards[1].index_name} is missing"]


def test_verify_finds_a_cut_shard_even_at_a_members_border(folder: Path, manifest: Manifest) -> None:
    shard = manifest.shards[-1]
    size_bytes = shard.size_bytes
    os.truncate(folder / shard.name, size_bytes // 2 // 512 * 512)
    differences = verify(folder, workers=1)
    assert f"{shard.name} has {size_bytes // 2 // 512 * 512} bytes, not {size_bytes}" in differences


def test_verify_finds_an_extra_file(folder: Path) -> None:
    (folder / "cell-train-100-99999.tar").touch()
    assert verify(folder, workers=1) == ["cell-train-100-99999.tar is not in manifest.json"]


def test_verify_finds_a_link_to_nothing(folder: Path, manifest: Manifest) -> None:
    (folder / "extra").symlink_to("nowhere")
    name = manifest.shards[0].name
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    assert verify(folder, workers=1) == [
        f"{name} is a link to nothing",
        "extra is a link to nothing",
        f"{name} is missing",
    ]


def test_verify_finds_two_indexes_when_they_are_swapped(folder: Path, manifest: Manifest) -> None:
    first, second = (folder / shard.index_name for shard in manifest.shards[:2])
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    differences = verify(folder, workers=1)
    assert len(differences) == 2
    assert all("index.npy is not the file that manifest.json describes" in difference for difference in differences)


def test_verify_finds_a_shard_that_agrees_with_itself_but_not_with_the_dataset(
    folder: Path, manifest: Manifest
) -> None:
    copy = replace(manifest.shards[0], name="copy.tar")
    for name in ("name", "index_name", "fingerprints_name"):
        shutil.copy(folder / getattr(manifest.shards[0], name), folder / getattr(copy, name))
    shards = [copy, *manifest.shards]
    write_manifest(folder, replace(manifest, shards=shards, samples=manifest.samples + copy.samples))
    differences = verify(folder, workers=1)
    assert f"{shards[0].samples} samples have the key of another sample" in differences


def test_verify_finds_patients_in_two_tiers(folder: Path, manifest: Manifest) -> None:
    moved = [vars(shard) | ({"tier_percent": 1} if number == 2 else {}) for number, shard in enumerate(manifest.shards)]
    shards = [type(manifest.shards[0])(**values) for values in moved]
    write_manifest(folder, Manifest(**(vars(manifest) | {"shards": shards})))
    assert manifest.shards[2].tier_percent == 100
    assert any("patients are in two fraction tiers" in difference for difference in verify(folder, workers=1))


def test_verify_finds_a_split_that_is_not_the_samples(folder: Path, manifest: Manifest) -> None:
    shards = [type(shard)(**(vars(shard) | {"split": "test"})) for shard in manifest.shards]
    write_manifest(folder, Manifest(**(vars(manifest) | {"shards": shards})))
    assert any("does not have the shard's split" in difference for difference in verify(folder, workers=1))


def test_verify_finds_a_label_that_is_counted_wrongly(folder: Path, manifest: Manifest) -> None:
    assert manifest.labels == {"NORMAL": LabelCounts(30, 30), "PNEUMONIA": LabelCounts(30, 30)}
    write_manifest(folder, replace(manifest, labels=manifest.labels | {"NORMAL": LabelCounts(29, 31)}))
    assert verify(folder, workers=1) == ["the shards hold other labels than manifest.json counts"]


def test_verify_says_what_to_do_when_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json; pack a dataset into it first"):
        verify(tmp_path)
