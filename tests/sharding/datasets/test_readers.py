"""Tests of the readers of C19-Cohen, COVIDGR and a user's own folders, on trees with upstream's columns and quirks."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from sharding.datasets import c19_cohen, covidgr, folder
from sharding.datasets.folder import FolderOptions
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.packing.pack import PackConfig, pack
from tests.sharding.conftest import CsvWriter, RadiographMaker, samples_of

COHEN_HEADER = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,"
    "needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,"
    "view,modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,"
)


def parted(items: Iterable[Sample | Rejection]) -> tuple[list[Sample], Counter[tuple[str, str]]]:
    items = list(items)
    rejected = Counter((item.path, item.reason) for item in items if isinstance(item, Rejection))
    return [item for item in items if isinstance(item, Sample)], rejected


def cohen_row(
    filename: str, finding: str = "Pneumonia/Viral/COVID-19", patient: str = "2", view: str = "PA", **cells: str
) -> str:
    names = COHEN_HEADER.split(",")
    values = {"patientid": patient, "finding": finding, "view": view, "filename": filename}
    values = {"offset": "3", "modality": "X-ray", "folder": "images", "clinical_notes": '"a, b"'} | values | cells
    return ",".join(values.get(name, "") for name in names)


def cohen(root: Path, csv_file: CsvWriter, *rows: str, images: tuple[str, ...] = ()) -> Path:
    csv_file(root / "metadata.csv", COHEN_HEADER, *rows)
    (root / "images").mkdir(exist_ok=True)
    for name in images:
        csv_file(root / "images" / name, "")
    return root


@pytest.mark.parametrize(
    ("finding", "covid", "other"),
    [
        ("Pneumonia/Viral/COVID-19", 1, 0),
        ("Pneumonia", 0, 1),
        ("Pneumonia/Viral/Herpes ", 0, 1),
        ("Pneumonia/Fungal/Pneumocystis", 0, 1),
        ("No Finding", 0, 0),
        ("Tuberculosis", 0, 0),
        ("todo", None, None),
        ("Unknown", None, None),
    ],
)
def test_cohen_labels_covid_against_other_pneumonia(
    finding: str, covid: int | None, other: int | None, tmp_path: Path, csv_file: CsvWriter
) -> None:
    (sample,) = samples_of(c19_cohen.read(cohen(tmp_path, csv_file, cohen_row("a.png", finding))))
    assert sample.labels == {"COVID-19": covid, "other pneumonia": other}


def test_cohen_refuses_a_table_from_before_findings_were_paths(tmp_path: Path, csv_file: CsvWriter) -> None:
    with pytest.raises(UserError, match=r"metadata\.csv line 3: finding 'SARS' is not one of .*July 2020"):
        list(c19_cohen.read(cohen(tmp_path, csv_file, cohen_row("a.png"), cohen_row("b.png", "SARS"))))


@pytest.mark.parametrize(
    ("view", "expected"),
    [("PA", "frontal-pa"), ("AP", "frontal-ap"), ("AP Supine", "frontal-ap"), ("L", "lateral"), ("Axial", None)],
)
def test_cohen_knows_patient_study_view_sex_and_age(
    view: str, expected: str | None, tmp_path: Path, csv_file: CsvWriter
) -> None:
    row = cohen_row("1-s2.0-S01_lrg.jpg", patient="316b", view=view, sex="F", age="40")
    (sample,) = samples_of(c19_cohen.read(cohen(tmp_path, csv_file, row)))
    assert (sample.patient, sample.study, sample.view, sample.sex, sample.age, sample.split) == (
        "316b",
        "3",
        expected,
        "F",
        40,
        None,
    )
    assert sample.path == Path("images/1-s2.0-S01_lrg.jpg")


def test_cohen_counts_slices_volumes_repeated_names_and_files_without_a_row(
    tmp_path: Path, csv_file: CsvWriter
) -> None:
    rows = (
        cohen_row("slice.png", modality="CT"),
        cohen_row("volume.nii.gz", modality="CT", folder="volumes"),
        cohen_row("odd.nii.gz", folder="volumes"),
        cohen_row("twice.png", patient="3"),
        cohen_row("twice.png", patient="4"),
        cohen_row("whose.png", patient=""),
        cohen_row("absent.png"),
    )
    root = cohen(tmp_path, csv_file, *rows, images=("slice.png", "twice.png", "nobody.png", ".DS_Store"))
    samples, rejected = parted(c19_cohen.read(root))
    assert [(sample.path.name, sample.patient) for sample in samples] == [("twice.png", "3"), ("absent.png", "2")]
    assert rejected == {
        ("images/slice.png", "CT, not an X-ray"): 1,
        ("volumes/volume.nii.gz", "CT, not an X-ray"): 1,
        ("volumes/odd.nii.gz", "not in images/"): 1,
        ("images/twice.png", "file name of an earlier row"): 1,
        ("images/whose.png", "no patientid"): 1,
        ("images/nobody.png", "no row in metadata.csv"): 1,
    }


def test_cohen_packs_by_content_when_extensions_and_pixel_formats_are_odd(
    tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker
) -> None:
    gray = radiograph(1)
    sixteen = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    clear = gray.convert("RGBA")
    clear.putalpha(128)
    names = ("png.jpg", "jpeg.png", "sixteen.png", "clear.png", "text.jpeg", "absent.png", "../out.png")
    root = cohen(tmp_path / "cohen", csv_file, *(cohen_row(name, patient=name) for name in names))
    gray.save(root / "images" / "png.jpg", "PNG")
    gray.save(root / "images" / "jpeg.png", "JPEG")
    sixteen.save(root / "images" / "sixteen.png")
    clear.save(root / "images" / "clear.png")
    (root / "images" / "text.jpeg").write_text("<html>")
    manifest = pack(PackConfig("c19-cohen", root, tmp_path / "out", workers=1, allow_missing=True))
    assert manifest.samples == 4
    assert {(rejection.path, rejection.reason.split(" (")[0]) for rejection in manifest.rejected} == {
        ("images/text.jpeg", "not an image"),
        ("images/absent.png", "missing file"),
        ("images/../out.png", "path leads out of the dataset's root"),
    }


@pytest.fixture
def covidgr_root(tmp_path: Path, csv_file: CsvWriter) -> Path:
    for name in ("P/0001.jpg", "P/0002.jpg", "P/0003.jpg", "N/0001.jpg"):
        csv_file(tmp_path / "covidgr" / name, "")
    return tmp_path / "covidgr"


def test_covidgr_reads_both_classes_when_there_is_no_table(covidgr_root: Path) -> None:
    samples, rejected = parted(covidgr.read(covidgr_root))
    assert [(sample.path.as_posix(), sample.labels) for sample in samples] == [
        ("N/0001.jpg", {"COVID-19": 0}),
        ("P/0001.jpg", {"COVID-19": 1}),
        ("P/0002.jpg", {"COVID-19": 1}),
        ("P/0003.jpg", {"COVID-19": 1}),
    ]
    assert {sample.view for sample in samples} == {"frontal-pa"}
    assert len({sample.key for sample in samples}) == 4
    assert not rejected


def test_covidgr_patients_differ_when_a_positive_and_a_negative_have_one_name(covidgr_root: Path) -> None:
    samples, _ = parted(covidgr.read(covidgr_root))
    assert len({sample.patient for sample in samples}) == 4


def test_covidgr_carries_severities_and_counts_what_does_not_fit(covidgr_root: Path, csv_file: CsvWriter) -> None:
    csv_file(covidgr_root / "severity.csv", "Name,Severity", "0001,NORMAL-PCR+", "0002,SEVERE", "0009,MILD")
    csv_file(covidgr_root / "P" / "more" / "0004.jpg", "")
    csv_file(covidgr_root / "readme.txt", "")
    samples, rejected = parted(covidgr.read(covidgr_root))
    severity = {sample.path.as_posix(): [sample.labels[name] for name in covidgr.SEVERITIES] for sample in samples}
    assert severity == {
        "N/0001.jpg": [0, 0, 0, 0],
        "P/0001.jpg": [1, 0, 0, 0],
        "P/0002.jpg": [0, 0, 0, 1],
        "P/0003.jpg": [None] * 4,
    }
    assert rejected == {
        ("P/more/0004.jpg", "not in P/ or N/"): 1,
        ("readme.txt", "not in P/ or N/"): 1,
        ("P/0009", "only in severity.csv: no such image"): 1,
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0001,GRAVE"], "line 2: Severity='GRAVE' is not one of NORMAL-PCR"),
        (["0001,MILD", "0001,SEVERE"], "line 3: 0001 has another severity in an earlier row"),
    ],
)
def test_covidgr_refuses_a_table_when_it_contradicts(
    rows: list[str], message: str, covidgr_root: Path, csv_file: CsvWriter
) -> None:
    csv_file(covidgr_root / "severity.csv", "Name,Severity", *rows)
    with pytest.raises(UserError, match=message):
        list(covidgr.read(covidgr_root))


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folder_takes_folders_for_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path, "sick/a b.png", "sick/a-b.png", "well/1.jpg", "readme.txt", "well/more/2.jpg", ".git/x/y")
    samples, rejected = parted(folder.read(root, FolderOptions()))
    assert [(sample.path.as_posix(), sample.split, sample.labels) for sample in samples] == [
        ("sick/a b.png", None, {"sick": 1, "well": 0}),
        ("sick/a-b.png", None, {"sick": 1, "well": 0}),
        ("well/1.jpg", None, {"sick": 0, "well": 1}),
    ]
    assert len({sample.key for sample in samples}) == len({sample.patient for sample in samples}) == 3
    assert rejected == {("readme.txt", "not at CLASS/IMAGE"): 1, ("well/more/2.jpg", "not at CLASS/IMAGE"): 1}
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "each counts as a separate patient" in printed


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folder_takes_folders_named_so_for_splits(val: str, tmp_path: Path) -> None:
    root = tree(tmp_path, "train/sick/1.png", f"{val}/well/1.png", "test/sick/1.png", "test/stray.png")
    samples, rejected = parted(folder.read(root, FolderOptions()))
    assert {(sample.split, sample.labels["sick"]) for sample in samples} == {("train", 1), ("val", 0), ("test", 1)}
    assert rejected == {("test/stray.png", "not at SPLIT/CLASS/IMAGE"): 1}


def test_folder_names_both_when_splits_and_classes_are_mixed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has the split train/ and sick/, which is not a split"):
        list(folder.read(tree(tmp_path, "train/well/1.png", "sick/1.png"), FolderOptions()))


def test_folder_counts_names_that_are_not_utf8_and_links_to_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "sick/1.png")
    (root / "again").symlink_to(root, target_is_directory=True)
    (root / os.fsdecode(b"sick/\xff.png")).touch()
    samples, rejected = parted(folder.read(root, FolderOptions()))
    assert len(samples) == 1
    assert Counter(reason for _, reason in rejected) == {"path is not UTF-8": 1, "link to a folder": 1}


def test_folder_reads_a_table_with_columns_of_any_name(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_file(
        tmp_path / "tables" / "mine.csv",
        "file;".replace(";", ",") + "who,part,class,projection,gender,years",
        "a/1.png,p1,train,sick,PA,female,058Y",
        "a/2.png,p1,,,lateral,,",
    )
    options = FolderOptions("tables/mine.csv", "file", "who", "part", "class", "projection", "gender", "years")
    first, second = samples_of(folder.read(tmp_path, options))
    assert (first.path, first.patient, first.split, first.view, first.sex, first.age, first.labels) == (
        Path("a/1.png"),
        "p1",
        "train",
        "frontal-pa",
        "F",
        58,
        {"sick": 1},
    )
    assert (second.split, second.view, second.sex, second.age, second.labels) == (
        None,
        "lateral",
        None,
        None,
        {"sick": None},
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.png,holdout,PA,M,5", "line 2: split='holdout' must be one of TRAIN, VAL, VALID"),
        ("1.png,train,AXIAL,M,5", "line 2: view='AXIAL' must be one of PA, AP"),
        ("1.png,train,PA,man,5", "line 2: sex='man' must be one of F, FEMALE"),
        ("1.png,train,PA,M,five", "line 2: age='five' must be years, or as 058Y"),
    ],
)
def test_folder_names_the_cell_when_it_has_no_meaning(
    row: str, message: str, tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(tmp_path / "t.csv", "path,split,view,sex,age", row)
    with pytest.raises(UserError, match=message):
        list(folder.read(tmp_path, FolderOptions("t.csv", split="split", view="view", sex="sex", age="age")))


def test_folder_counts_rows_without_a_path_or_a_patient(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path,id", "1.png,", ",7", "2.png,7")
    samples, rejected = parted(folder.read(tmp_path, FolderOptions("t.csv", patient="id")))
    assert [sample.path.name for sample in samples] == ["2.png"]
    assert [reason for _, reason in rejected] == ["no path or no patient"] * 2


def test_folder_refuses_a_label_column_that_holds_no_classes(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path,label", *(f"{i}.png,{i}" for i in range(101)))
    with pytest.raises(UserError, match=r"line 102: label='label' has more than 100 classes"):
        list(folder.read(tmp_path, FolderOptions("t.csv", label="label")))


def test_folder_table_rows_that_lead_out_of_the_root_are_counted(
    tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker
) -> None:
    csv_file(tmp_path / "root" / "t.csv", "path", "/etc/passwd", "../1.png", "in.png", "nul\0.png")
    radiograph(1).save(tmp_path / "root" / "in.png")
    config = PackConfig("folder", tmp_path / "root", tmp_path / "out", workers=1, folder=FolderOptions("t.csv"))
    manifest = pack(replace(config, allow_missing=True))
    assert manifest.samples == 1
    assert Counter(rejection.reason for rejection in manifest.rejected) == {
        "path leads out of the dataset's root": 2,
        "missing file": 1,
    }
