import gc
import json
import os
import shutil
import subprocess
import tarfile
import warnings
from collections import defaultdict
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from infra.errors import UserError
from infra.rng import stable_hash
from sharding.datasets import chexpert
from sharding.format.manifest import Manifest, Rejection, read_index
from sharding.images.encode import NOT_AN_IMAGE
from sharding.packing.pack import PackConfig, pack
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest
from tests.sharding.conftest import CsvWriter, RadiographMaker

NO_LABELS = "," * 14


@pytest.fixture
def config(cell_root: Path, tmp_path: Path) -> PackConfig:
    return PackConfig("cell", cell_root, tmp_path / "shards", shorter_side_px=32, shard_size_mb=0.03, workers=1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def metadata(folder: Path, manifest: Manifest) -> list[tuple[int, str, dict[str, Any]]]:
    """Tier, key and JSON of every sample, read with plain tarfile in the shards' order."""
    found = []
    for shard in manifest.shards:
        with tarfile.open(folder / shard.name, "r:") as tar:
            members = tar.getmembers()
            for image, meta in zip(members[::2], members[1::2], strict=True):
                assert (Path(image.name).suffix, Path(meta.name).suffix) == (".jpg", ".json")
                assert Path(image.name).stem == Path(meta.name).stem
                found.append((shard.tier_percent, Path(image.name).stem, json.loads(member_bytes(tar, meta))))
    return found


def test_pack_gives_equal_bytes_whatever_the_number_of_workers(config: PackConfig, tmp_path: Path) -> None:
    pack(config)
    pack(replace(config, out=tmp_path / "again", workers=2))
    assert content(Path(config.out)) == content(tmp_path / "again")


def test_pack_gives_equal_bytes_when_files_are_copied_elsewhere_in_another_order(
    config: PackConfig, tmp_path: Path
) -> None:
    pack(config)
    for path in sorted(config.source.rglob("*.jpeg"), reverse=True):
        copy = tmp_path / "copy" / path.relative_to(config.source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    pack(replace(config, root=tmp_path / "copy", out=tmp_path / "again"))
    assert content(Path(config.out)) == content(tmp_path / "again")


def test_pack_changes_order_and_fractions_when_the_seed_does(config: PackConfig, tmp_path: Path) -> None:
    first = metadata(Path(config.out), pack(config))
    other = replace(config, out=tmp_path / "other", seed=1)
    second = metadata(Path(other.out), pack(other))
    assert [key for _, key, _ in first] != [key for _, key, _ in second]
    assert sorted(key for _, key, _ in first) == sorted(key for _, key, _ in second)


def test_pack_orders_shards_by_split_then_tier_and_shares_no_patient_between_tiers(config: PackConfig) -> None:
    manifest = pack(config)
    groups = [(shard.split, shard.tier_percent) for shard in manifest.shards]
    splits: list[str | None] = ["train", "val", "test"]
    assert groups == sorted(groups, key=lambda group: (splits.index(group[0]), group[1]))
    tiers = defaultdict(set)
    for tier, _, meta in metadata(Path(config.out), manifest):
        tiers[meta["patient"]].add(tier)
    assert all(len(of_patient) == 1 for of_patient in tiers.values())
    counts = [sum(tier == {percent} for tier in tiers.values()) for percent in (1, 10, 100)]
    assert sum(counts) == manifest.patients
    assert counts[:2] == [1, -(-manifest.patients // 10) - 1]


def test_pack_shuffles_the_samples_within_a_group(config: PackConfig) -> None:
    keys = [
        key for tier, key, meta in metadata(Path(config.out), pack(config)) if (tier, meta["split"]) == (100, "train")
    ]
    assert keys != sorted(keys)
    first_half = keys[: len(keys) // 2]
    assert {"NORMAL", "PNEUMONIA"} == {key.split("_")[1] for key in first_half}


def test_pack_keeps_shards_below_their_size_and_fills_them(config: PackConfig) -> None:
    manifest = pack(config)
    sizes = [(Path(config.out) / shard.name).stat().st_size for shard in manifest.shards]
    assert sizes == [shard.size_bytes for shard in manifest.shards]
    assert max(sizes) <= 30_000
    of_one_group = [s for s in manifest.shards if (s.split, s.tier_percent) == ("train", 100)]
    assert len(of_one_group) > 2
    assert all(shard.size_bytes >= 20_000 for shard in of_one_group[:-1])


def test_pack_puts_one_sample_into_a_shard_when_it_is_larger_than_the_limit(config: PackConfig) -> None:
    manifest = pack(replace(config, shard_size_mb=1e-6))
    assert [shard.samples for shard in manifest.shards] == [1] * 60


def test_shards_are_read_whole_when_the_reader_is_webdataset(config: PackConfig) -> None:
    manifest = pack(config)
    urls = [str(Path(config.out) / shard.name) for shard in manifest.shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the tars open
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
        gc.collect()
    assert len({sample["__key__"] for sample in samples}) == len(samples) == manifest.samples == 60
    for sample in samples:
        assert min(sample["jpg"].size) == 32
        assert sample["json"]["source_height"] == 60
        source = Image.open(config.source / sample["json"]["path"]).convert("L").resize(sample["jpg"].size)
        difference = np.asarray(sample["jpg"].convert("L")).astype(int) - np.asarray(source)
        assert np.abs(difference).mean() < 6


def test_index_leads_to_the_content_of_the_members(config: PackConfig) -> None:
    manifest = pack(config)
    for shard in manifest.shards:
        rows = read_index(Path(config.out), shard)
        with tarfile.open(Path(config.out) / shard.name, "r:") as tar:
            members = tar.getmembers()
            images, metas = members[::2], members[1::2]
            assert [member.offset_data for member in images] == rows["image_offset"].tolist()
            assert [member.size for member in images] == rows["image_bytes"].tolist()
            assert [member.offset_data for member in metas] == rows["meta_offset"].tolist()
            assert [member.size for member in metas] == rows["meta_bytes"].tolist()
            keys = [Path(member.name).stem for member in images]
            patients = [json.loads(member_bytes(tar, member))["patient"] for member in metas]
            sizes = [Image.open(BytesIO(member_bytes(tar, member))).size for member in images]
        assert [stable_hash(f"cell/{key}") for key in keys] == rows["sample"].tolist()
        assert [stable_hash(f"cell/{patient}") for patient in patients] == rows["patient"].tolist()
        assert sizes == list(zip(rows["width"].tolist(), rows["height"].tolist(), strict=True))


def test_manifest_states_mean_and_deviation_of_all_pixels(config: PackConfig) -> None:
    manifest = pack(replace(config, shorter_side_px=60, jpeg_quality=40))
    pixels = np.concatenate([np.asarray(Image.open(path)).ravel() for path in config.source.rglob("*.jpeg")]) / 255
    assert manifest.pixel_mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert manifest.pixel_std == pytest.approx(pixels.std(), abs=1e-12)


def test_manifest_names_neither_paths_nor_workers(config: PackConfig) -> None:
    pack(config)
    text = (Path(config.out) / "manifest.json").read_text()
    assert str(config.source) not in text
    assert "workers" not in text


def test_pack_rejects_and_names_bad_images_and_packs_the_rest(config: PackConfig) -> None:
    folder = config.source / "train" / "NORMAL"
    (folder / "IM-0000-0001.jpeg").write_bytes(b"")
    (folder / "IM-0001-0001.jpeg").write_text("not a radiograph")
    os.truncate(folder / "IM-0002-0001.jpeg", 900)
    (folder / "IM-0003-0001.jpeg").unlink()
    (folder / "IM-0003-0001.jpeg").symlink_to(folder / "nowhere")
    manifest = pack(replace(config, allow_missing=True))
    assert manifest.samples == sum(shard.samples for shard in manifest.shards) == 56
    assert manifest.rejected == [
        Rejection("train/NORMAL/IM-0000-0001.jpeg", "zero bytes"),
        Rejection("train/NORMAL/IM-0001-0001.jpeg", NOT_AN_IMAGE),
        Rejection("train/NORMAL/IM-0002-0001.jpeg", "truncated or damaged image"),
        Rejection("train/NORMAL/IM-0003-0001.jpeg", "missing file"),
    ]
    assert read_manifest(config.out) == manifest


def test_pack_rejects_a_path_when_it_leads_out_of_the_root(
    tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker
) -> None:
    root = tmp_path / "nih"
    (root / "images").mkdir(parents=True)
    for path in (tmp_path / "secret.png", root / "images" / "00000001_000.png"):
        radiograph(1).save(path)
    csv_file(
        root / "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position",
        "00000001_000.png,Mass,0,1,50,M,PA",
        "../../secret.png,Mass,0,2,50,M,PA",
        f"{tmp_path}/secret.png,Mass,0,2,50,M,PA",
        "a name.png,Mass,0,2,50,M,PA",
    )
    manifest = pack(PackConfig("chestxray14", root, tmp_path / "shards", workers=1))
    assert manifest.samples == 1
    assert sorted(rejection.reason for rejection in manifest.rejected) == [
        "name is not 1 to 90 letters, digits, _ and -",
        "path leads out of the dataset's root",
        "path leads out of the dataset's root",
    ]


def test_pack_names_both_files_when_they_have_the_same_key(config: PackConfig) -> None:
    folder = config.source / "val" / "NORMAL"
    shutil.copy(folder / "IM-0020-0001.jpeg", folder / "IM-0020-0001.png")
    with pytest.raises(UserError, match=r"IM-0020-0001\.jpeg and .*IM-0020-0001\.png have the same key"):
        pack(config)


def test_pack_leaves_nothing_when_no_image_can_be_packed(tmp_path: Path, csv_file: CsvWriter) -> None:
    rows = [f"R/train/patient{i}/study1/view1_frontal.jpg,Male,5,Frontal,PA{NO_LABELS}" for i in range(3)]
    csv_file(tmp_path / "root" / "train.csv", ",".join(chexpert.COLUMNS), *rows)
    with pytest.raises(UserError, match=r"no image of dataset 'chexpert' .* can be packed: 3 x missing file"):
        pack(PackConfig("chexpert", tmp_path / "root", tmp_path / "shards", workers=1))
    for table in ("train.csv", "valid.csv"):
        csv_file(tmp_path / "root" / table, ",".join(chexpert.COLUMNS))
    with pytest.raises(UserError, match="it has no images"):
        pack(PackConfig("chexpert", tmp_path / "root", tmp_path / "shards", workers=1))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_pack_touches_nothing_when_the_same_dataset_is_already_there(config: PackConfig) -> None:
    manifest = pack(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).iterdir()}
    assert pack(replace(config, workers=2)) == manifest
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).iterdir()} == before


def test_pack_refuses_a_folder_when_it_holds_something_else(config: PackConfig, tmp_path: Path) -> None:
    pack(config)
    before = content(Path(config.out))
    with pytest.raises(UserError, match="packed with seed=0, not 1; choose another folder"):
        pack(replace(config, seed=1))
    next(config.source.rglob("*.jpeg")).unlink()
    with pytest.raises(UserError, match="other samples"):
        pack(config)
    assert content(Path(config.out)) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files, such as 'thesis.tex'"):
        pack(replace(config, out=tmp_path / "full"))
    with pytest.raises(UserError, match="is a file"):
        pack(replace(config, out=tmp_path / "full" / "thesis.tex"))


def test_pack_refuses_its_own_folder_when_that_is_not_whole(config: PackConfig) -> None:
    manifest = pack(config)
    (Path(config.out) / manifest.shards[0].name).unlink()
    with pytest.raises(UserError, match=rf"incomplete copy .*: {manifest.shards[0].name} is missing; delete it first"):
        pack(config)


def test_shards_hold_the_sources_pixels_when_the_format_is_png(config: PackConfig) -> None:
    manifest = pack(replace(config, shorter_side_px=60, image_format="png"))
    assert verify(Path(config.out), workers=1) == []
    with tarfile.open(Path(config.out) / manifest.shards[0].name, "r:") as tar:
        image, meta = tar.getmembers()[:2]
        assert image.name.endswith(".png")
        source = Image.open(config.source / json.loads(member_bytes(tar, meta))["path"])
        assert np.array_equal(np.asarray(Image.open(BytesIO(member_bytes(tar, image)))), np.asarray(source))


def test_pass_through_copies_the_bytes_that_fit_and_encodes_the_others(config: PackConfig) -> None:
    large = next(config.source.rglob("*.jpeg"))
    Image.open(large).resize((200, 200)).save(large)
    manifest = pack(replace(config, shorter_side_px=60, pass_through=True))
    copied = 0
    for shard in manifest.shards:
        with tarfile.open(Path(config.out) / shard.name, "r:") as tar:
            members = tar.getmembers()
            for image, meta in zip(members[::2], members[1::2], strict=True):
                source = config.source / json.loads(member_bytes(tar, meta))["path"]
                same = member_bytes(tar, image) == source.read_bytes()
                assert same == (source != large)
                copied += same
    assert copied == 59


def test_shards_hold_at_most_the_samples_that_were_asked_for(config: PackConfig) -> None:
    manifest = pack(replace(config, shard_samples=5))
    counts = defaultdict(list)
    for shard in manifest.shards:
        counts[shard.split, shard.tier_percent].append(shard.samples)
    assert sum(map(sum, counts.values())) == 60
    for samples in counts.values():
        assert set(samples[:-1]) <= {5}
        assert samples[-1] <= 5


def test_manifest_states_all_options_that_decide_about_the_bytes(config: PackConfig) -> None:
    options = pack(config).options
    assert options == {
        "shorter_side_px": 32,
        "image_format": "jpeg",
        "jpeg_quality": 90,
        "pass_through": False,
        "shard_size_mb": 0.03,
        "shard_samples": None,
        "seed": 0,
        "cell.patients": "by_name",
        "simulated": False,
        "samples_sha256": options["samples_sha256"],
    }


def test_pack_counts_a_file_when_its_path_is_not_utf8(config: PackConfig) -> None:
    folder = os.fsencode(config.source / "train" / "NORMAL")
    Path(os.fsdecode(folder + b"/IM-\xff-0001.jpeg")).touch()
    assert Rejection("train/NORMAL/IM-\ufffd-0001.jpeg", "path is not UTF-8") in pack(config).rejected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dataset", "mnist"),
        ("shorter_side_px", 0),
        ("jpeg_quality", 101),
        ("shard_size_mb", 0),
        ("workers", -1),
        ("shard_samples", 0),
    ],
)
def test_config_names_option_and_value_when_it_is_out_of_range(
    option: str, value: int | str, config: PackConfig
) -> None:
    values: dict[str, Any] = {option: value}
    with pytest.raises(UserError, match=f"{option}={value}"):
        replace(config, **values)


def test_config_refuses_to_copy_jpegs_when_the_format_is_png(config: PackConfig) -> None:
    with pytest.raises(UserError, match=r"pass_through=true copies JPEGs, so it excludes image_format=png"):
        replace(config, pass_through=True, image_format="png")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_pack_leaves_nothing_when_the_disk_is_full_before_the_first_shard(config: PackConfig, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=False, capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount a file system here")
    try:
        with pytest.raises(UserError, match="no space left on the device"):
            pack(replace(config, out=disk / "shards", workers=2))
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
