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
        # from before July 2020
        ("COVID-19", 1, 0),
        ("COVID-19, ARDS", 1, 0),
        ("ARDS", 0, 1),
        ("SARS", 0, 1),
        ("Pneumocystis", 0, 1),
        ("Streptococcus", 0, 1),
        ("Chlamydophila", 0, 1),
        ("E.Coli", 0, 1),
        ("Klebsiella", 0, 1),
        ("Legionella", 0, 1),
        ("Lipoid", 0, 1),
        ("Varicella", 0, 1),
        ("Bacterial", 0, 1),
        ("Mycoplasma Bacterial Pneumonia", 0, 1),
        ("Influenza", 0, 1),
        ("Herpes pneumonia, ARDS", 0, 1),
        ("Spinal Tuberculosis", 0, 0),
    ],
)
def test_cohen_labels_covid_against_other_pneumonia(
    finding: str, covid: int | None, other: int | None, tmp_path: Path, csv_file: CsvWriter
) -> None:
    (sample,) = samples_of(c19_cohen.read(cohen(tmp_path, csv_file, cohen_row("a.png", f'"{finding}"'))))
    assert sample.labels == {"COVID-19": covid, "other pneumonia": other}


def test_cohen_counts_a_finding_as_unknown_when_it_is_none_of_upstreams(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (cohen_row(f"{i}.png", "Unusual Interstitial Pneumonia") for i in range(3))
    samples = samples_of(c19_cohen.read(cohen(tmp_path, csv_file, *rows)))
    assert [sample.labels for sample in samples] == [{"COVID-19": None, "other pneumonia": None}] * 3
    expected = "(3): finding='Unusual Interstitial Pneumonia' (metadata.csv line 2 and 2 more)"
    assert capsys.readouterr().err == f"warning: cells that mean nothing count as unknown {expected}\n"


def test_cohen_takes_no_study_from_an_offset_that_is_unknown(tmp_path: Path, csv_file: CsvWriter) -> None:
    rows = [cohen_row(f"{i}.png", offset=offset) for i, offset in enumerate(("?", " ", "nan", "0", "-3"))]
    samples = samples_of(c19_cohen.read(cohen(tmp_path, csv_file, *rows)))
    assert [sample.study for sample in samples] == [None, None, None, "0", "-3"]


def test_cohen_reads_a_table_from_before_it_named_folders(tmp_path: Path, csv_file: CsvWriter) -> None:
    header = "patientid,offset,sex,age,finding,survival,view,modality,date,location,filename,doi,url,license"
    csv_file(tmp_path / "metadata.csv", header, "2,0,M,65,COVID-19,Y,PA,X-ray,2020,,a.jpeg,,,")
    (tmp_path / "images").mkdir()
    (sample,) = samples_of(c19_cohen.read(tmp_path))
    assert (sample.path, sample.labels["COVID-19"]) == (Path("images/a.jpeg"), 1)


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
        ("metadata.csv line 6", "path of an earlier row"): 1,
        ("images/whose.png", "row without a patient"): 1,
        ("images/.DS_Store", "hidden or system file"): 1,
        ("images/nobody.png", "file without a row"): 1,
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
        (["0001,GRAVE"], r"Severity='GRAVE' \(severity\.csv line 2\); a severity is one of NORMAL-PCR"),
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
    tree(root, "other.csv", "well/list.TSV")
    samples, rejected = parted(folder.read(root, FolderOptions()))
    assert [(sample.path.as_posix(), sample.split, sample.labels) for sample in samples] == [
        ("sick/a b.png", None, {"sick": 1, "well": 0}),
        ("sick/a-b.png", None, {"sick": 1, "well": 0}),
        ("well/1.jpg", None, {"sick": 0, "well": 1}),
    ]
    assert len({sample.key for sample in samples}) == len({sample.patient for sample in samples}) == 3
    assert rejected == {
        ("readme.txt", "not at CLASS/IMAGE"): 1,
        ("well/more/2.jpg", "not at CLASS/IMAGE"): 1,
        (".git", "hidden or system file"): 1,
        ("other.csv", "table that was not used"): 1,
        ("well/list.TSV", "table that was not used"): 1,
    }
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
    options = FolderOptions(Path("tables/mine.csv"), "file", "who", "part", "class", "projection", "gender", "years")
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
    meaning = "class has the classes sick (1), each absent where another is named; 1 blank cells mean unknown"
    assert capsys.readouterr().err == f"mine.csv: {meaning}\n"


def test_folder_names_a_table_beside_the_given_one_as_not_used(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path", "1.png")
    tree(tmp_path, "1.png", "2.png", "older.csv")
    samples, rejected = parted(folder.read(tmp_path, FolderOptions(Path("t.csv"))))
    assert [sample.path.as_posix() for sample in samples] == ["1.png"]
    assert rejected == {("2.png", "file without a row"): 1, ("older.csv", "table that was not used"): 1}


def test_folder_lists_all_cells_without_a_meaning_and_takes_them_for_unknown(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("1.png,?,M,50+", "2.png,Axial,man,early 40s", "3.png,PA,x,50+", "4.png,lat,Unknown,121", "5.png,,,nan")
    csv_file(tmp_path / "t.csv", "path,view,sex,age", *rows)
    options = FolderOptions(Path("t.csv"), view="view", sex="sex", age="age", patient="path")
    samples = samples_of(folder.read(tmp_path, options))
    assert [(sample.view, sample.sex, sample.age) for sample in samples] == [
        (None, "M", None),
        (None, "M", None),
        ("frontal-pa", None, None),
        ("lateral", None, None),
        (None, None, None),
    ]
    assert capsys.readouterr().err == (
        "warning: cells that mean nothing count as unknown (7): view='?' (t.csv line 2), "
        "age='50+' (t.csv line 2 and 1 more), view='Axial' (t.csv line 3), age='early 40s' (t.csv line 3), "
        "sex='x' (t.csv line 4), age='121' (t.csv line 5)\n"
    )


def test_folder_takes_days_of_a_patients_own_scale_and_no_dates(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_file(tmp_path / "t.csv", "path,day", "1.png,0", "2.png,-380", "3.png,20180115", "4.png,2018-01-15", "5.png,")
    samples = samples_of(folder.read(tmp_path, FolderOptions(Path("t.csv"), patient="path", day="day")))
    assert [sample.metadata().get("day") for sample in samples] == [0, -380, None, None, None]
    assert "day='20180115' (t.csv line 4), day='2018-01-15' (t.csv line 5)" in capsys.readouterr().err


def test_folder_refuses_splits_without_a_meaning_all_at_once(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path,split", "1.png,holdout", "2.png,train", "3.png,tset", "4.png,tset")
    message = r"nothing \(3\): split='holdout' .*, split='tset' \(t\.csv line 4 and 1 more\); a split is one of"
    with pytest.raises(UserError, match=message):
        list(folder.read(tmp_path, FolderOptions(Path("t.csv"), split="split")))


def test_folder_counts_rows_without_a_path_or_a_patient_or_of_an_earlier_path(
    tmp_path: Path, csv_file: CsvWriter
) -> None:
    rows = ("1.png,", ",7", "2.png,7", "./2.png,8", "3.png,nan", "4.png,?", "5.png,NULL", "6.png,unknown")
    csv_file(tmp_path / "t.csv", "path,id", *rows)
    samples, rejected = parted(folder.read(tmp_path, FolderOptions(Path("t.csv"), patient="id")))
    assert [(sample.path.name, sample.patient) for sample in samples] == [("2.png", "7")]
    assert rejected == {
        ("1.png", "row without a patient"): 1,
        ("t.csv line 3", "row without a path"): 1,
        ("t.csv line 5", "path of an earlier row"): 1,
        ("3.png", "row without a patient"): 1,
        ("4.png", "row without a patient"): 1,
        ("5.png", "row without a patient"): 1,
        ("6.png", "row without a patient"): 1,
    }


def test_folder_counts_files_that_no_row_of_the_table_names(tmp_path: Path, csv_file: CsvWriter) -> None:
    root = tree(tmp_path, "a/1.png", "a/2.png", "a/._1.png", "Thumbs.db", "notes.txt")
    csv_file(root / "t.csv", "path", "a/1.png")
    samples, rejected = parted(folder.read(root, FolderOptions(Path("t.csv"))))
    assert [sample.path.as_posix() for sample in samples] == ["a/1.png"]
    assert rejected == {
        ("a/2.png", "file without a row"): 1,
        ("notes.txt", "file without a row"): 1,
        ("a/._1.png", "hidden or system file"): 1,
        ("Thumbs.db", "hidden or system file"): 1,
    }


def test_folder_takes_nan_for_no_class(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path,label", "1.png,sick", "2.png,nan", "3.png,NULL", "4.png,none")
    samples = samples_of(folder.read(tmp_path, FolderOptions(Path("t.csv"), label="label")))
    unknown = {"none": None, "sick": None}
    assert [sample.labels for sample in samples] == [{"none": 0, "sick": 1}, unknown, unknown, {"none": 1, "sick": 0}]


def test_folder_takes_studies_from_their_column(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path,who,exam", "1.png,a,x", "2.png,a,x", "3.png,a,?", "4.png,a,")
    samples = samples_of(folder.read(tmp_path, FolderOptions(Path("t.csv"), patient="who", study="exam")))
    assert [sample.study for sample in samples] == ["x", "x", None, None]


def test_folder_accepts_absolute_paths_inside_the_root(tmp_path: Path, csv_file: CsvWriter) -> None:
    root = tree(tmp_path / "real", "a/1.png", "a/2.png")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    csv_file(root / "t.csv", "path", f"{root}/a/1.png", f"{tmp_path}/link/a/../a/2.png", "a/1.png")
    samples, rejected = parted(folder.read(tmp_path / "link", FolderOptions(Path("t.csv"))))
    assert [sample.path.as_posix() for sample in samples] == ["a/1.png", "a/2.png"]
    assert rejected == {("t.csv line 4", "path of an earlier row"): 1}


def test_folder_names_the_options_when_its_columns_have_other_names(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "imagename,class", "1.png,sick")
    message = (
        r"t\.csv lacks the column\(s\) 'path', 'who'; it has 'imagename', 'class'; "
        r"name the right column\(s\) with --path=COLUMN, --patient=COLUMN$"
    )
    with pytest.raises(UserError, match=message):
        list(folder.read(tmp_path, FolderOptions(Path("t.csv"), patient="who")))


def test_folder_names_links_when_there_is_nothing_else(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "sick").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(UserError, match=r"has no folder of images, but links such as sick; name the real folder"):
        list(folder.read(tmp_path / "root", FolderOptions()))
    (sample,) = samples_of(folder.read(tmp_path / "root", FolderOptions(), follow_links=True))
    assert (sample.path, sample.labels) == (Path("sick/1.png"), {"sick": 1})


def test_folder_refuses_a_label_column_that_holds_no_classes(tmp_path: Path, csv_file: CsvWriter) -> None:
    csv_file(tmp_path / "t.csv", "path,label", *(f"{i}.png,{i}" for i in range(101)))
    with pytest.raises(UserError, match=r"line 102: label='label' has more than 100 classes"):
        list(folder.read(tmp_path, FolderOptions(Path("t.csv"), label="label")))


def test_folder_table_rows_that_lead_out_of_the_root_are_counted(
    tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker
) -> None:
    csv_file(tmp_path / "root" / "t.csv", "path", "/etc/passwd", "../1.png", "in.png", "nul\0.png")
    radiograph(1).save(tmp_path / "root" / "in.png")
    config = PackConfig("folder", tmp_path / "root", tmp_path / "out", workers=1, folder=FolderOptions(Path("t.csv")))
    manifest = pack(replace(config, allow_missing=True))
    assert manifest.samples == 1
    assert Counter(rejection.reason for rejection in manifest.rejected) == {
        "path leads out of the dataset's root": 2,
        "missing file": 1,
    }
