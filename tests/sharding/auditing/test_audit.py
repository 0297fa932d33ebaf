import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from infra.errors import RunFailed, UserError
from sharding.auditing import contact_sheet as sheet
from sharding.auditing.audit import audit, excluding_labels
from sharding.auditing.contact_sheet import contact_sheet
from sharding.auditing.duplicates import near_duplicate_groups
from sharding.auditing.findings import SETS, SPLITS, WITHIN, ImageGroup
from sharding.datasets.chestxray14 import COLUMNS
from sharding.packing.pack import PackConfig, pack
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from tests.support.manifests import without_fingerprints
from tests.support.pictures import center_square, picture

Make = Callable[..., Image.Image]


def packed(dataset: str, root: Path, name: str = "") -> Path:
    out = root.parent / f"shards-{name or root.name}"
    pack(PackConfig(dataset, root, out, shorter_side_px=64, workers=1))
    return out


def normal(root: Path, split: str, number: int) -> Path:
    return root / split / "NORMAL" / f"IM-{number:04d}-0001.jpeg"


def keys(groups: list[ImageGroup]) -> list[list[str]]:
    return [[image.key for image in group.images] for group in groups]


@pytest.fixture
def chestxray14_root(tmp_path: Path, radiograph: Make, csv_file: Callable[..., None]) -> Path:
    """Patients 1 to 4 with two images each: 1 and 2 change from healthy to a finding, 3 from one finding to another."""
    root = tmp_path / "chestxray14"
    findings = ["No Finding", "Pneumonia", "No Finding", "Mass|Edema", "Mass|Pneumonia", "Edema|Pneumonia"]
    findings += ["No Finding", "No Finding"]
    rows = []
    for number, finding in enumerate(findings):
        name = f"{number // 2 + 1:08d}_{number % 2:03d}.png"
        rows.append(f"{name},{finding},{number % 2},{number // 2 + 1},50,F,PA")
        (root / "images").mkdir(parents=True, exist_ok=True)
        radiograph(1000 + number, 70, 64).save(root / "images" / name)
    csv_file(root / "Data_Entry_2017.csv", ",".join(COLUMNS), *rows)
    return root


@pytest.fixture
def leaking(cell_root: Path) -> Path:
    """The tree of cell_root, with three copies across splits and two within one."""
    for number in (1, 2):
        coarse = np.random.default_rng(number).integers(0, 256, (20, 24), dtype=np.uint8)
        textured = Image.fromarray(coarse).resize((144, 120), Image.Resampling.BICUBIC)
        textured.save(normal(cell_root, "train", number), quality=95)
    copy = normal(cell_root, "train", 0).read_bytes()
    normal(cell_root, "test", 900).write_bytes(copy)
    normal(cell_root, "train", 901).write_bytes(copy)
    Image.open(normal(cell_root, "train", 1)).save(normal(cell_root, "test", 902), quality=50)
    with Image.open(normal(cell_root, "train", 2)) as image:
        image.crop((1, 0, image.width, image.height)).save(normal(cell_root, "val", 903), quality=80)
        image.resize((80, 80)).save(normal(cell_root, "train", 904), quality=80)
    return cell_root


def test_audit_finds_nothing_but_the_shared_patient_when_images_differ(cell_root: Path) -> None:
    result = audit([packed("cell", cell_root)], workers=1)
    assert [*result.identical, *result.near_identical, *result.two_class_patients] == []
    (shared,) = result.shared_patients
    assert (shared.spread, shared.dataset, shared.patient) == (SPLITS, "cell", "person6_virus")
    assert [(place.split, place.images) for place in shared.places] == [("train", 2), ("val", 1)]
    assert result.folders[0].splits == {"train": 40, "val": 8, "test": 12}


def test_audit_finds_copies_within_and_across_splits(leaking: Path) -> None:
    result = audit([packed("cell", leaking)], workers=1)
    (identical,) = result.identical
    assert identical.spread == SPLITS
    assert {(image.split, image.key.split("_")[2]) for image in identical.images} == {
        ("train", "IM-0000-0001"),
        ("train", "IM-0901-0001"),
        ("test", "IM-0900-0001"),
    }
    assert [(pair.first, pair.second) for pair in identical.pairs] == [(0, 1), (0, 2)]
    assert all(pair.equal_bytes and pair.distance == 0 for pair in identical.pairs)
    assert sorted(map(sorted, keys(result.near_identical))) == [
        ["test_NORMAL_IM-0902-0001", "train_NORMAL_IM-0001-0001"],
        ["train_NORMAL_IM-0002-0001", "train_NORMAL_IM-0904-0001", "val_NORMAL_IM-0903-0001"],
    ]
    for group in result.near_identical:
        assert group.spread == SPLITS
        assert all(not pair.equal_bytes and pair.distance <= 40 and pair.correlation >= 0.985 for pair in group.pairs)


def test_audit_tells_what_stays_within_one_split(cell_root: Path) -> None:
    content = normal(cell_root, "train", 3).read_bytes()
    normal(cell_root, "train", 900).write_bytes(content)
    result = audit([packed("cell", cell_root)], workers=1)
    assert [group.spread for group in result.identical] == [WITHIN]
    assert {image.patient for image in result.identical[0].images} == {"IM-0003", "IM-0900"}


def test_audit_finds_shared_images_of_two_datasets_after_reencoding(cell_root: Path, chestxray14_root: Path) -> None:
    with Image.open(normal(cell_root, "test", 24)) as image:
        image.resize((90, 75), Image.Resampling.LANCZOS).save(chestxray14_root / "images" / "00000004_001.png")
    folders = [packed("cell", cell_root), packed("chestxray14", chestxray14_root)]
    result = audit(folders, workers=1)
    assert [patient.spread for patient in result.shared_patients] == [SPLITS]
    assert result.identical == []
    (group,) = result.near_identical
    assert group.spread == SETS
    assert [(image.folder, image.key) for image in group.images] == [
        (str(folders[0]), "test_NORMAL_IM-0024-0001"),
        (str(folders[1]), "00000004_001"),
    ]


def test_audit_finds_every_patient_and_image_when_one_dataset_is_packed_twice(cell_root: Path) -> None:
    folders = [packed("cell", cell_root, "one"), packed("cell", cell_root, "other")]
    result = audit(folders, workers=1)
    assert len(result.shared_patients) == read_manifest(folders[0]).patients
    assert len(result.identical) == 60
    assert (
        {patient.spread for patient in result.shared_patients} == {group.spread for group in result.identical} == {SETS}
    )
    assert [place.folder for place in result.shared_patients[0].places] == [str(folder) for folder in folders]


def test_audit_counts_patients_of_labels_that_exclude_each_other(chestxray14_root: Path) -> None:
    result = audit([packed("chestxray14", chestxray14_root)], workers=1)
    assert {patient.patient: patient.labels for patient in result.two_class_patients} == {
        "1": [("No Finding", "Pneumonia")],
        "2": [("Edema", "No Finding"), ("Mass", "No Finding")],
    }
    assert result.shared_patients == []


def test_labels_exclude_each_other_only_by_how_a_dataset_uses_them() -> None:
    assert excluding_labels([("NORMAL",), ("PNEUMONIA",)]) == {("NORMAL", "PNEUMONIA")}
    assert excluding_labels([("Edema", "Mass"), ("Mass", "Nodule"), ("No Finding",), ()]) == {
        ("Edema", "No Finding"),
        ("Mass", "No Finding"),
        ("No Finding", "Nodule"),
    }
    chexpert = [("No Finding", "Support Devices"), ("Edema", "Support Devices")]
    assert excluding_labels(chexpert) == {("Edema", "No Finding")}


def test_audit_does_not_depend_on_the_number_of_workers(leaking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed("cell", leaking)
    serial = msgspec.json.encode(audit([folder], workers=1))
    monkeypatch.setattr("sharding.auditing.fingerprints._IMAGES_A_TASK", 7)
    monkeypatch.setattr("sharding.auditing.duplicates._PAIRS_A_TASK", 1)
    assert msgspec.json.encode(audit([folder], workers=2)) == serial


def test_near_duplicate_groups_names_every_sample_in_packed_order(leaking: Path) -> None:
    folder = packed("cell", leaking)
    identities, groups = near_duplicate_groups([folder], workers=1)
    shards = ShardSet([folder])
    shard, row = shards.locate(np.arange(shards.samples))
    members: dict[int, set[str]] = {}
    for number, (i, j) in enumerate(zip(shard.tolist(), row.tolist(), strict=True)):
        assert str(shards.metadata(i, j)["path"]).endswith(f"{shards.key(i, j).split('_', 2)[2]}.jpeg")
        members.setdefault(int(groups[number]), set()).add(shards.key(i, j))
    assert len(set(identities.tolist())) == shards.samples == 65
    assert Counter(map(len, members.values())) == {1: 57, 2: 1, 3: 2}


def blank(width: int) -> Image.Image:
    """An image that is blank once it is a JPEG; packing would reject one of a single gray level."""
    image = Image.new("L", (width, 64), 9)
    for number in range(8):
        image.putpixel((8 * number + 3, 8 * number + 3), 6 + number)  # too little for a JPEG
    return image


@pytest.mark.slow
def test_a_hundred_blank_images_make_a_hundred_pairs(cell_root: Path) -> None:
    for number in range(100):
        blank(70 + number).save(normal(cell_root, "train", 1000 + number), "PNG")
    result = audit([packed("cell", cell_root)], workers=1)
    assert result.near_identical == []
    for number in range(100):
        blank(70).save(normal(cell_root, "val", 1000 + number), "PNG")
    result = audit([packed("cell", cell_root, "more")], workers=1)
    (group,) = result.identical
    assert (len(group.images), len(group.pairs)) == (101, 100)


def test_the_contact_sheet_shows_a_bounded_number_of_pairs_and_says_so(
    leaking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = audit([packed("cell", leaking)], workers=1)
    pairs = sum(not pair.equal_bytes for group in result.near_identical for pair in group.pairs) + 2
    page = contact_sheet(result)
    assert f"{pairs} pairs in" in page
    assert f"; {pairs} are shown." in page
    assert page.count('src="data:image/jpeg;base64,') == 2 * pairs
    assert "http" not in page
    monkeypatch.setattr(sheet, "MAX_PAIRS", 2)
    page = contact_sheet(result)
    assert f"; 2 are shown, {pairs - 2} are not: they are in audit.json." in page
    assert page.count("<img") == 4


def test_center_squares_are_found_and_files_are_named(cell_root: Path) -> None:
    originals = [normal(cell_root, "train", number) for number in range(4)]
    for number, original in enumerate(originals):
        picture(number).save(original, quality=95)
        center_square(picture(number)).save(normal(cell_root, "test", 900 + number), quality=80)
    result = audit([packed("cell", cell_root)], workers=1)
    assert sorted([image.path for image in group.images] for group in result.near_identical) == [
        [path.relative_to(cell_root).as_posix() for path in (original, normal(cell_root, "test", 900 + number))]
        for number, original in enumerate(originals)
    ]
    assert all(pair.center for group in result.near_identical for pair in group.pairs)
    assert [[image.stays for image in group.images] for group in result.near_identical] == [[True, False]] * 4


def test_of_copies_in_two_folders_the_one_in_the_first_stays(cell_root: Path, chestxray14_root: Path) -> None:
    with Image.open(normal(cell_root, "test", 24)) as image:
        image.save(chestxray14_root / "images" / "00000004_001.png")
    folders = [packed("cell", cell_root), packed("chestxray14", chestxray14_root)]
    for order in (folders, folders[::-1]):
        result = audit(order, workers=1)
        (group,) = [*result.identical, *result.near_identical]
        assert [image.folder for image in group.images if image.stays] == [str(order[0])]


def test_shards_without_fingerprints_give_the_same_groups(leaking: Path) -> None:
    folder = packed("cell", leaking)
    stored = audit([folder], workers=1)
    without_fingerprints(folder)
    computed = audit([folder], workers=1)
    assert keys(computed.identical) == keys(stored.identical)
    assert keys(computed.near_identical) == keys(stored.near_identical)


def test_a_changed_byte_ends_the_audit_and_names_the_sample(cell_root: Path) -> None:
    folder = packed("cell", cell_root)
    without_fingerprints(folder)  # otherwise only copies are decoded
    path = folder / read_manifest(folder).shards[0].name
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        RunFailed, match=r"sample 0 of .*\.tar does not match its checksum; .* sternum verify"
    ) as raised:
        audit([folder], workers=2)
    assert "\n" not in str(raised.value)


def test_wrong_folders_are_answered_in_one_line(cell_root: Path, tmp_path: Path) -> None:
    folder = packed("cell", cell_root)
    with pytest.raises(UserError, match=r"has no manifest\.json; pack a dataset into it first"):
        audit([folder, tmp_path])
    with pytest.raises(UserError, match="2 times; name each folder once"):
        audit([folder, folder / ".." / folder.name])
    manifest = read_manifest(folder)
    os.truncate(folder / manifest.shards[0].name, 512)
    with pytest.raises(UserError, match=r"has 512 bytes, manifest\.json says"):
        audit([folder])
    (folder / manifest.shards[0].name).unlink()
    with pytest.raises(UserError, match=r"which manifest\.json lists, cannot be read"):
        audit([folder])
