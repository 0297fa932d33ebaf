import re
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from infra.errors import UserError
from sharding.datasets import OPTIONS, READERS, cell, chestxray14, chexpert
from sharding.datasets.cell import CellOptions
from sharding.datasets.files import ABSENT
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.packing.pack import PackConfig, pack
from tests.sharding.conftest import CsvWriter, RadiographMaker, samples_of

CHEXPERT_HEADER = ",".join(chexpert.COLUMNS)
CHESTXRAY14_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NO_LABELS = "," * 13


def read_only(reader: ModuleType, root: Path) -> Sample:
    (sample,) = samples_of(reader.read(root))
    return sample


@pytest.mark.parametrize("name", READERS)
def test_reader_names_the_expected_files_when_root_is_not_the_dataset(name: str, tmp_path: Path) -> None:
    options = [OPTIONS[name]()] if name in OPTIONS else []
    expected = (
        r"train\.csv|Data_Entry_2017\.csv|train/NORMAL/|metadata\.csv, images/|P/, N/|CLASS/IMAGE|DICOM files|\*\.tar"
    )
    with pytest.raises(UserError, match=f"is not dataset '{name}', which has .*({expected})"):
        list(READERS[name](tmp_path, *options))
    with pytest.raises(UserError, match="is not a folder"):
        list(READERS[name](tmp_path / "absent", *options))


@pytest.mark.parametrize("release", ["CheXpert-v1.0", "CheXpert-v1.0-small", "renamed"])
def test_chexpert_finds_images_under_root_whatever_the_prefix(
    release: str, tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(
        tmp_path / "train.csv",
        CHEXPERT_HEADER,
        f"{release}/train/patient00001/study2/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,0.0,-1.0,,,,,,,,,,1.0",
    )
    sample = read_only(chexpert, tmp_path)
    assert sample.path == Path("train/patient00001/study2/view1_frontal.jpg")
    assert (sample.key, sample.patient, sample.study) == (
        "patient00001_study2_view1_frontal",
        "patient00001",
        "study2",
    )
    assert (sample.view, sample.sex, sample.age, sample.split) == ("frontal-ap", "F", 68, "train")
    stated = {name: value for name, value in sample.labels.items() if value is not None}
    assert stated == {"No Finding": 1, "Cardiomegaly": 0, "Lung Opacity": -1, "Support Devices": 1}
    assert list(sample.labels) == list(chexpert.OBSERVATIONS)


def test_chexpert_knows_what_is_unknown_when_age_is_0_and_sex_unknown(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(
        tmp_path / "train.csv",
        CHEXPERT_HEADER,
        f"R/train/patient1/study1/view1_frontal.jpg,Unknown,0,Frontal,LL{NO_LABELS},",
        f"R/train/patient1/study1/view2_lateral.jpg,Male,,Lateral,{NO_LABELS},",
    )
    csv_file(
        tmp_path / "valid.csv",
        CHEXPERT_HEADER,
        f"R/valid/patient2/study1/view1_frontal.jpg,Male,90,Frontal,PA{NO_LABELS},",
    )
    first, second, third = samples_of(chexpert.read(tmp_path))
    assert (first.sex, first.age, first.view, first.split) == (None, None, "frontal", "train")
    assert (second.sex, second.age, second.view) == ("M", None, "lateral")
    assert (third.view, third.split) == ("frontal-pa", "val")


@pytest.mark.parametrize(
    "path",
    [
        "R/../../etc/passwd",
        "/etc/passwd",
        "R/train/../patient1/study1/view1_frontal.jpg",
        "/train/patient1/study1/view1_frontal.jpg",
        "",
    ],
)
def test_chexpert_rejects_a_row_whose_path_is_not_of_its_form(path: str, tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "train.csv", CHEXPERT_HEADER, f"{path},Male,50,Frontal,PA{NO_LABELS},")
    absent, item = chexpert.read(tmp_path)
    assert absent == Rejection("valid.csv", ABSENT)
    assert isinstance(item, Rejection)
    assert item.path == path or (item.path, path) == ("train.csv line 2", "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            f"R/train/patient1/study1/view1_frontal.jpg,Male,5,Frontal,PA,2.0{NO_LABELS}",
            r"cells mean nothing \(1\): No Finding='2.0' \(train\.csv line 2\); a label is 1.0",
        ),
        ("R/train/patient1/study1/view1_frontal.jpg,Male,5", r"train\.csv line 2 has 3 cells, but the header has 19"),
    ],
)
def test_chexpert_names_line_and_value_when_a_cell_is_wrong(
    row: str, message: str, tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(tmp_path / "train.csv", CHEXPERT_HEADER, row)
    with pytest.raises(UserError, match=message):
        list(chexpert.read(tmp_path))


def test_table_names_missing_and_present_columns_when_it_lacks_some(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "train.csv", "Path,Sex,Gender", "a,b,c")
    with pytest.raises(UserError, match=r"lacks the column\(s\) 'Age', .*it has 'Path', 'Sex', 'Gender'"):
        list(chexpert.read(tmp_path))


def test_table_is_read_when_it_has_a_byte_order_mark_and_blank_lines(tmp_path: Path, csv_file: CsvWriter) -> None:
    row = f"R/train/patient1/study1/view1_frontal.jpg,Male,5,Frontal,PA{NO_LABELS},"
    csv_file(tmp_path / "train.csv", CHEXPERT_HEADER, row, "", encoding="utf-8-sig")
    assert read_only(chexpert, tmp_path).patient == "patient1"


@pytest.mark.parametrize("content", [b"Path,Sex\xff\xfe", b"", b'Path,"Sex'])
def test_table_is_refused_in_one_line_when_it_is_no_utf8_csv(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError) as raised:
        list(chexpert.read(tmp_path))
    assert "train.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("table", ["test.csv", "test_labels.csv"])
@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0/"])
def test_chexpert_reads_the_test_part_without_details_when_it_is_there(
    prefix: str, table: str, tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(tmp_path / "train.csv", CHEXPERT_HEADER)
    observations = ",".join(chexpert.OBSERVATIONS[1:])
    csv_file(
        tmp_path / table,
        f"Path,{observations}",
        f"{prefix}test/patient64741/study1/view1_frontal.jpg,1{',0' * 12}",
        f"{prefix}test/patient64741/study1/view2_lateral.jpg,0{',0' * 12}",
    )
    frontal, lateral = samples_of(chexpert.read(tmp_path))
    assert (frontal.split, frontal.patient, frontal.view, lateral.view) == (
        "test",
        "patient64741",
        "frontal",
        "lateral",
    )
    assert (frontal.sex, frontal.age) == (None, None)
    assert frontal.labels["Enlarged Cardiomediastinum"] == 1
    assert (frontal.labels["No Finding"], frontal.labels["Edema"]) == (None, 0)
    csv_file(tmp_path / "test.csv", CHEXPERT_HEADER)
    csv_file(tmp_path / "test_labels.csv", CHEXPERT_HEADER)
    with pytest.raises(UserError, match=r"both test\.csv and test_labels\.csv, two tables of the same part"):
        list(chexpert.read(tmp_path))


BATCHES = (
    "CheXpert-v1.0 batch 1 (validate & csv)",
    "CheXpert-v1.0 batch 2 (train 1)",
    "CheXpert-v1.0 batch 3 (train 2)",
    "CheXpert-v1.0 batch 4 (train 3)",
)
BATCH_IMAGES = (
    f"{BATCHES[0]}/valid/patient64541/study1/view1_frontal.jpg",
    f"{BATCHES[1]}/patient00001/study1/view1_frontal.jpg",
    f"{BATCHES[2]}/patient21514/study1/view1_frontal.jpg",
    f"{BATCHES[3]}/patient42876/study1/view2_lateral.jpg",
)


@pytest.fixture
def chexpert_batches(tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker) -> Path:
    """The full release of CheXpert as it is downloaded: four folders, one image in each, and two tables."""
    root = tmp_path / "chexpertchestxrays-u20210408"
    for number, name in enumerate(BATCH_IMAGES):
        (root / name).parent.mkdir(parents=True)
        radiograph(number).save(root / name)
    rows = [f"CheXpert-v1.0/train/{Path(name).relative_to(Path(name).parts[0])}" for name in BATCH_IMAGES[1:]]
    valid = "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg"
    for table, paths in (("train.csv", rows), ("valid.csv", [valid])):
        csv_file(root / BATCHES[0] / table, CHEXPERT_HEADER, *(f"{path},Female,68,,{NO_LABELS}," for path in paths))
    return root


@pytest.mark.parametrize("folder", ["", BATCHES[0]])
def test_chexpert_is_packed_from_its_four_batch_folders(
    folder: str, chexpert_batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chexpert_batches / folder)
    manifest = pack(PackConfig("chexpert", Path(), tmp_path / "out", workers=1))
    assert manifest.rejected == []
    assert manifest.samples == 4
    assert {shard.split for shard in manifest.shards} == {"train", "val"}


def test_chexpert_knows_which_batch_holds_a_patient(chexpert_batches: Path, csv_file: CsvWriter) -> None:
    items = list(chexpert.read(chexpert_batches))
    assert {item.path.as_posix() for item in samples_of(items)} == set(BATCH_IMAGES)
    (chexpert_batches / BATCHES[2] / "patient21514" / "study1" / "view9_frontal.jpg").touch()
    shutil.rmtree(chexpert_batches / BATCHES[3])
    items = list(chexpert.read(chexpert_batches))
    assert {item.path.as_posix() for item in items if isinstance(item, Sample)} == {
        *BATCH_IMAGES[:3],
        "train/patient42876/study1/view2_lateral.jpg",
    }
    unnamed = f"{BATCHES[2]}/patient21514/study1/view9_frontal.jpg"
    assert [item for item in items if isinstance(item, Rejection)] == [Rejection(unnamed, "file without a row")]


def test_chexpert_rejects_a_row_that_repeats_a_path(tmp_path: Path, csv_file: CsvWriter) -> None:
    path = "train/patient1/study1/view1_frontal.jpg,Male,5,Frontal,PA"
    csv_file(tmp_path / "train.csv", CHEXPERT_HEADER, f"A/{path}{NO_LABELS},", f"B/{path}{NO_LABELS},")
    csv_file(tmp_path / "valid.csv", CHEXPERT_HEADER)
    _, rejected = chexpert.read(tmp_path)
    assert rejected == Rejection("train.csv line 3", "path of an earlier row")


def test_chexpert_takes_an_age_without_a_meaning_for_unknown(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    row = f"R/train/patient1/study1/view1_frontal.jpg,Male,old,Frontal,PA{NO_LABELS},"
    csv_file(tmp_path / "train.csv", CHEXPERT_HEADER, row)
    assert read_only(chexpert, tmp_path).age is None
    assert "count as unknown (1): Age='old' (train.csv line 2)" in capsys.readouterr().err


def test_chestxray14_reads_rows_longer_than_the_header(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(
        tmp_path / "Data_Entry_2017.csv",
        CHESTXRAY14_HEADER + ",",
        "00000013_005.png,Emphysema|Pleural_Thickening,30,00013,060Y,M,AP,3056,2544,0.139,0.139,",
        "00000017_001.png,No Finding,1,17,77,F,PA,2500,2048,0.168,0.168,",
    )
    for number, name in (("001", "00000017_001.png"), ("012", "00000013_005.png")):
        csv_file(tmp_path / f"images_{number}" / "images" / name, "")
    csv_file(tmp_path / "train_val_list.txt", "00000013_005.png")
    csv_file(tmp_path / "test_list.txt", "00000017_001.png")
    first, second = samples_of(chestxray14.read(tmp_path))
    assert first.path == Path("images_012/images/00000013_005.png")
    assert (first.key, first.patient, first.study, first.view) == ("00000013_005", "13", "30", "frontal-ap")
    assert (first.sex, first.age, first.split) == ("M", 60, "train")
    assert {name for name, value in first.labels.items() if value} == {"Emphysema", "Pleural_Thickening"}
    assert (second.path.parts[0], second.split, second.age, second.sex) == ("images_001", "test", 77, "F")
    assert second.labels["No Finding"] == 1
    assert sum(value or 0 for value in second.labels.values()) == 1


@pytest.mark.parametrize(
    ("cell_text", "years"),
    [("058Y", 58), ("006M", 0.5), ("003D", 3 / 365.25), ("004W", 28 / 365.25), ("414", None), ("", None), ("1", 1)],
)
def test_chestxray14_turns_ages_into_years_when_they_have_units(
    cell_text: str, years: float | None, tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(tmp_path / "Data_Entry_2017.csv", CHESTXRAY14_HEADER, f"a.png,Mass,0,1,{cell_text},M,PA,1,1,1,1")
    (tmp_path / "images").mkdir()
    assert read_only(chestxray14, tmp_path).age == years


def test_chestxray14_names_the_value_when_a_cell_is_not_upstreams(tmp_path: Path, csv_file: CsvWriter) -> None:
    (tmp_path / "images").mkdir()
    csv_file(tmp_path / "Data_Entry_2017.csv", CHESTXRAY14_HEADER, "a.png,Mass|Flu,0,1,5,M,PA,1,1,1,1")
    with pytest.raises(UserError, match=r"Finding Labels='Flu' \(.* line 2\); a finding is one of Atelectasis"):
        list(chestxray14.read(tmp_path))


def test_chestxray14_names_both_paths_when_an_image_exists_twice(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "Data_Entry_2017.csv", CHESTXRAY14_HEADER)
    csv_file(tmp_path / "images" / "a.png", "")
    csv_file(tmp_path / "images_001" / "images" / "a.png", "")
    with pytest.raises(UserError, match=re.escape("images/a.png and images_001/images/a.png")):
        list(chestxray14.read(tmp_path))


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person12_bacteria_34.jpeg", "person12_bacteria"),
        ("person12_virus_56.jpeg", "person12_virus"),
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0115-0001-0002.jpeg", "NORMAL2-IM-0115"),
        ("BACTERIA-1008087-0001.jpeg", "BACTERIA-1008087"),
        ("NORMAL-28501-0002.jpeg", "NORMAL-28501"),
    ],
)
def test_cell_groups_by_patient_under_both_naming_schemes(
    name: str, patient: str, tmp_path: Path, csv_file: CsvWriter
) -> None:
    for class_name in cell.CLASSES:
        (tmp_path / "test" / class_name).mkdir(parents=True)
    csv_file(tmp_path / "test" / "PNEUMONIA" / name, "")
    (sample,) = samples_of(cell.read(tmp_path, CellOptions()))
    assert (sample.patient, sample.split) == (patient, "test")
    assert sample.labels == {"NORMAL": 0, "PNEUMONIA": 1}


@pytest.mark.parametrize(("patients", "count"), [("by_name", 6), ("by_number", 4)])
def test_cell_groups_bacteria_and_virus_of_one_number_into_one_patient_by_option(
    patients: Literal["by_name", "by_number"], count: int, tmp_path: Path, csv_file: CsvWriter
) -> None:
    for class_name in cell.CLASSES:
        (tmp_path / "test" / class_name).mkdir(parents=True)
    for name in ("person12_bacteria_34", "person12_virus_56", "BACTERIA-7-0001", "VIRUS-7-0001"):
        csv_file(tmp_path / "test" / "PNEUMONIA" / f"{name}.jpeg", "")
    for name in ("IM-0115-0001", "NORMAL2-IM-0115-0001"):
        csv_file(tmp_path / "test" / "NORMAL" / f"{name}.jpeg", "")
    samples = samples_of(cell.read(tmp_path, CellOptions(patients)))
    assert len({sample.patient for sample in samples}) == count


def test_cell_reads_every_image_once_with_unique_keys(cell_root: Path) -> None:
    samples = samples_of(cell.read(cell_root, CellOptions()))
    assert Counter(sample.split for sample in samples) == {"train": 40, "val": 8, "test": 12}
    assert len({sample.key for sample in samples}) == 60
    assert sum(sample.labels["PNEUMONIA"] == 1 for sample in samples) == 30


def test_cell_rejects_what_is_not_named_and_placed_as_upstream_does(cell_root: Path) -> None:
    (cell_root / "val" / "NORMAL" / "holiday.jpeg").touch()
    (cell_root / "val" / "NORMAL" / ".DS_Store").touch()
    for name in ("val/COVID/IM-0001-0001.jpeg", "val/NORMAL/old/IM-0001-0001.jpeg", "IM-0001-0001.jpeg"):
        (cell_root / name).parent.mkdir(exist_ok=True)
        (cell_root / name).touch()
    rejected = Counter(item.reason for item in cell.read(cell_root, CellOptions()) if isinstance(item, Rejection))
    assert rejected == {
        "file name does not identify a patient": 1,
        "hidden or system file": 1,
        "not in a folder train/val/test and then NORMAL/PNEUMONIA": 3,
    }


def test_cell_is_read_and_its_gaps_are_named_when_a_copy_is_partial(cell_root: Path) -> None:
    shutil.rmtree(cell_root / "val" / "PNEUMONIA")
    for file in (cell_root / "test" / "NORMAL").iterdir():
        file.unlink()
    items = list(cell.read(cell_root, CellOptions()))
    assert [item for item in items if isinstance(item, Rejection)] == [
        Rejection("val/PNEUMONIA", ABSENT),
        Rejection("test/NORMAL", ABSENT),
    ]
    assert len(samples_of(items)) == 60 - 4 - 6


CHESTXRAY14_ROWS = ("1.png,Mass,0,1,58,M,PA,1,1,1,1", "2.png,Mass,0,2,58,M,PA,1,1,1,1")


def chestxray14_root(root: Path, csv_file: CsvWriter, *rows: str, train: bytes = b"", test: bytes = b"") -> Path:
    csv_file(root / "Data_Entry_2017.csv", CHESTXRAY14_HEADER, *(rows or CHESTXRAY14_ROWS))
    for name in ("1.png", "2.png"):
        csv_file(root / "images" / name, "")
    for name, content in (("train_val_list.txt", train), ("test_list.txt", test)):
        if content:
            (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_chestxray14_reads_lists_with_a_byte_order_mark(mark: bytes, tmp_path: Path, csv_file: CsvWriter) -> None:
    root = chestxray14_root(tmp_path, csv_file, train=mark + b"1.png\r\n", test=mark + b"2.png\n")
    assert [sample.split for sample in samples_of(chestxray14.read(root))] == ["train", "test"]


def test_chestxray14_refuses_an_image_in_both_lists(tmp_path: Path, csv_file: CsvWriter) -> None:
    root = chestxray14_root(tmp_path, csv_file, train=b"1.png\n2.png\n", test=b"2.png\n")
    with pytest.raises(UserError, match=r"1 image\(s\) are in both train_val_list.txt and test_list.txt .* as 2.png"):
        list(chestxray14.read(root))


def test_chestxray14_refuses_lists_that_name_no_image_of_the_table(tmp_path: Path, csv_file: CsvWriter) -> None:
    root = chestxray14_root(tmp_path, csv_file, train=b"x.png\n", test=b"y.png\n")
    with pytest.raises(UserError, match=r"name no image of .*2017.csv, but x.png and others; remove the lists"):
        list(chestxray14.read(root))


def test_chestxray14_names_a_list_that_is_missing_and_counts_what_the_other_leaves_out(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    root = chestxray14_root(tmp_path, csv_file, train=b"1.png\n7.png\n8.png\n")
    items = list(chestxray14.read(root))
    assert [sample.split for sample in samples_of(items)] == ["train", None]
    assert [item for item in items if isinstance(item, Rejection)] == [Rejection("test_list.txt", ABSENT)]
    printed = capsys.readouterr().err
    assert "1 images of Data_Entry_2017.csv are in neither" in printed
    assert "2 names in the lists have no row" in printed


def test_chestxray14_rejects_rows_without_a_patient_and_keeps_patient_0(tmp_path: Path, csv_file: CsvWriter) -> None:
    patients = enumerate(("", "nan", "000", "007"))
    rows = [f"{number}.png,Mass,0,{patient},58,M,PA,1,1,1,1" for number, patient in patients]
    root = chestxray14_root(tmp_path, csv_file, *rows)
    items = list(chestxray14.read(root))
    assert [item.patient for item in items if isinstance(item, Sample)] == ["0", "7"]
    assert [item.path for item in items if isinstance(item, Rejection)] == ["images/0.png", "images/1.png"]


def test_chestxray14_counts_repeated_rows_and_files_without_a_row(tmp_path: Path, csv_file: CsvWriter) -> None:
    root = chestxray14_root(tmp_path, csv_file, *CHESTXRAY14_ROWS, CHESTXRAY14_ROWS[0])
    for name in ("images/3.png", "images_001/images/.DS_Store", "images_002/images/.DS_Store", "LOG.pdf"):
        csv_file(root / name, "")
    assert {item.path: item.reason for item in chestxray14.read(root) if isinstance(item, Rejection)} == {
        "Data_Entry_2017.csv line 4": "path of an earlier row",
        "images/3.png": "file without a row",
        "images_001/images/.DS_Store": "hidden or system file",
        "images_002/images/.DS_Store": "hidden or system file",
        "LOG.pdf": "file without a row",
    }


def test_a_link_out_of_the_root_is_packed_only_on_request(
    cell_root: Path, tmp_path: Path, radiograph: RadiographMaker
) -> None:
    radiograph(1).save(tmp_path / "private.jpeg")
    (cell_root / "train" / "NORMAL" / "IM-9999-0001.jpeg").symlink_to(tmp_path / "private.jpeg")
    manifest = pack(PackConfig("cell", cell_root, tmp_path / "out", workers=1))
    reason = "link out of root; follow_links=true packs it"
    assert manifest.rejected == [Rejection("train/NORMAL/IM-9999-0001.jpeg", reason)]
    followed = pack(PackConfig("cell", cell_root, tmp_path / "followed", workers=1, follow_links=True))
    assert (followed.samples, followed.rejected) == (manifest.samples + 1, [])
    with pytest.raises(UserError, match="follow_links=None, not True; choose another folder"):
        pack(PackConfig("cell", cell_root, tmp_path / "out", workers=1, follow_links=True))


def test_a_row_whose_image_is_a_link_out_of_the_root_is_rejected(
    tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker
) -> None:
    root = chestxray14_root(tmp_path / "root", csv_file)
    for number in (1, 2):
        (root / "images" / f"{number}.png").unlink()
    radiograph(1).save(tmp_path / "private.png")
    radiograph(2).save(root / "images" / "2.png")
    (root / "images" / "1.png").symlink_to(tmp_path / "private.png")
    manifest = pack(PackConfig("chestxray14", root, tmp_path / "out", workers=1))
    assert manifest.rejected == [Rejection("images/1.png", "link out of root; follow_links=true packs it")]
    assert pack(PackConfig("chestxray14", root, tmp_path / "followed", workers=1, follow_links=True)).samples == 2


def test_hidden_files_that_appear_do_not_make_another_dataset(cell_root: Path, tmp_path: Path) -> None:
    config = PackConfig("cell", cell_root, tmp_path / "out", workers=1)
    first = pack(config)
    (cell_root / "train" / ".DS_Store").touch()
    assert pack(config) == first
