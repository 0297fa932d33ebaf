"""Labels from tables: several columns, several classes in a cell, and tables joined to a set when it is packed."""

import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from infra.errors import UserError
from sharding.datasets import folder
from sharding.datasets.dicom import DicomOptions
from sharding.datasets.folder import FolderOptions
from sharding.datasets.label_table import LabelOptions
from sharding.format.label_counts import LabelCounts
from sharding.format.manifest import Manifest
from sharding.format.sample import Sample
from sharding.packing.catalog import Catalog
from sharding.packing.pack import PackConfig, pack
from tests.sharding.conftest import CsvWriter, RadiographMaker, samples_of
from tests.support.dicom_files import dicom_bytes

GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def labels_in(root: Path, **options: Any) -> list[dict[str, int | None]]:
    return [sample.labels for sample in samples_of(folder.read(root, FolderOptions(Path("t.csv"), **options)))]


def test_columns_of_one_label_each_become_labels_and_a_line_says_what_their_cells_mean(
    tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("1.png,1,No,-1", "2.png,0,YES,", "3.png,1,nan,Uncertain")
    csv_file(tmp_path / "t.csv", "path,effusion,mass,edema", *rows)
    assert labels_in(tmp_path, labels=["effusion", "mass", "edema"], patient="path") == [
        {"effusion": 1, "mass": 0, "edema": -1},
        {"effusion": 0, "mass": 1, "edema": None},
        {"effusion": 1, "mass": None, "edema": -1},
    ]
    said = capsys.readouterr().err
    assert "t.csv: in effusion, mass, edema, 'YES' means present (1), '1' means present (2)" in said
    assert "'No' means absent (1), '0' means absent (1), 'Uncertain' means uncertain (1), '-1' means unc" in said


def test_one_column_holds_several_classes_with_a_separator_beside_columns_of_one_label(
    tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(tmp_path / "t.csv", "path,finding,device", "1.png,Mass | Edema|Mass,1", "2.png,Edema,0", "3.png,,0")
    assert labels_in(tmp_path, label="finding", label_separator="|", labels=["device"], patient="path") == [
        {"device": 1, "Edema": 1, "Mass": 1},
        {"device": 0, "Edema": 1, "Mass": 0},
        {"device": 0, "Edema": None, "Mass": None},
    ]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["1.png,Mass,maybe"], {"labels": ["x"]}, r"x='maybe' \(t\.csv line 2\); a label is 1, yes, true"),
        (["1.png,x,1"], {"label": "finding", "labels": ["x"]}, r"'x' is a label column and a class in label='finding'"),
        (["1.png,a,1"], {"labels": ["y"]}, r"lacks the column\(s\) 'y'; .* with --labels=COLUMN"),
        (["1.png,a,1", "1.png,b,1"], {"label": "finding"}, r"line 3: 1\.png has other labels in an earlier row"),
    ],
)
def test_a_table_whose_labels_contradict_or_mean_nothing_is_refused(
    rows: list[str], options: dict[str, Any], message: str, tmp_path: Path, csv_file: CsvWriter
) -> None:
    csv_file(tmp_path / "t.csv", "path,finding,x", *rows)
    with pytest.raises(UserError, match=message):
        labels_in(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"join": "path"}, r"join=path describes a table; name the table too: csv"),
        ({"csv": Path("t.csv")}, r"csv=t\.csv has no labels unless you name them: --columns=\[a,b\]"),
        ({"csv": Path("t.csv"), "columns": ["a"], "separator": "|"}, r"separator=\| is between classes"),
    ],
)
def test_options_of_a_label_table_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelOptions(**options)


@pytest.fixture
def classes(tmp_path: Path, radiograph: RadiographMaker) -> Path:
    """Four images in two folders of classes."""
    for number, name in enumerate(("sick/1", "sick/2", "well/3", "well/4")):
        path = tmp_path / "root" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        radiograph(number).save(path)
    return tmp_path / "root"


def packed(config: PackConfig) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Pack; return the manifest and the JSON of each sample by its key."""
    manifest = pack(config)
    found = {}
    for shard in manifest.shards:
        with tarfile.open(Path(config.out) / shard.name) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if member.name.endswith(".json") and content is not None:
                    found[member.name.removesuffix(".json")] = json.load(content)
    return manifest, found


def test_a_table_joined_by_path_adds_labels_counts_what_does_not_match_and_enters_the_manifest(
    classes: Path, tmp_path: Path, csv_file: CsvWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("sick/1.png,1,0", "./sick/2.png,0,1", "well/3.png,-1,", "gone.png,1,1", ",1,1")
    csv_file(classes / "l.csv", "path,sick,mass", *rows)
    options = LabelOptions(classes / "l.csv", "path", columns=["sick", "mass"])
    manifest, found = packed(PackConfig("folder", classes, tmp_path / "out", workers=1, labels=options))
    assert {meta["path"]: meta["labels"] for meta in found.values()} == {
        "sick/1.png": {"sick": 1, "mass": 0, "well": 0},
        "sick/2.png": {"sick": 0, "mass": 1, "well": 0},
        "well/3.png": {"sick": -1, "mass": None, "well": 1},
        "well/4.png": {"sick": None, "mass": None, "well": 1},
    }
    assert manifest.labels == {
        "mass": LabelCounts(1, 1, 0, 2),
        "sick": LabelCounts(1, 1, 1, 1),
        "well": LabelCounts(2, 2, 0, 0),
    }
    assert manifest.options["labels.columns"] == ["sick", "mass"]
    assert manifest.rejected == []  # the table lies among the images, and was used
    said = capsys.readouterr().err
    assert "l.csv: 3 of 4 values of path match 3 of 4 images of the dataset" in said
    assert "warning: l.csv: 2 rows without an image: l.csv line 6, l.csv line 5" in said
    assert "warning: l.csv: 1 image without a row, so without labels: well/4.png" in said
    assert "l.csv: its labels replace those of the dataset with the same name: sick" in said


def test_rows_that_contradict_each_other_and_a_table_that_matches_nothing_are_refused(
    classes: Path, tmp_path: Path, csv_file: CsvWriter
) -> None:
    options = LabelOptions(tmp_path / "l.csv", "path", columns=["mass"])
    config = PackConfig("folder", classes, tmp_path / "out", workers=1, labels=options)
    csv_file(tmp_path / "l.csv", "path,mass", "sick/1.png,1", "sick/2.png,1", "sick/1.png,0")
    with pytest.raises(UserError, match=r"l\.csv line 4 and l\.csv line 2 have the same path but different labels"):
        pack(config)
    csv_file(tmp_path / "l.csv", "path,mass", "1.png,1")
    with pytest.raises(
        UserError, match=r"none of its 1 values matches the path .* \(a row has '1.png', an image is 's"
    ):
        pack(config)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Three DICOM files of two studies of two patients."""
    for number, (patient, study) in enumerate((("0123", "1.9.1"), ("0123", "1.9.1"), ("0456", "1.9.2"))):
        path = tmp_path / "export" / f"DOE{patient}" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        instance = UID(f"1.8.{number}")
        path.write_bytes(
            dicom_bytes(
                np.roll(GRADIENT, number * 7), PatientID=patient, StudyInstanceUID=UID(study), SOPInstanceUID=instance
            )
        )
    return tmp_path / "export"


@pytest.mark.parametrize(
    ("join", "rows", "expected"),
    [
        ("PatientID", ("0123,1", "0456,0"), [0, 1, 1]),
        ("StudyInstanceUID", ("1.9.1,0", "1.9.2,1"), [0, 0, 1]),
        ("SOPInstanceUID", ("1.8.0,1", "1.8.1,0", "1.8.2,1"), [0, 1, 1]),
    ],
)
def test_dicom_joins_by_an_identifier_that_enters_neither_shards_nor_messages(
    join: Any,
    rows: tuple[str, ...],
    expected: list[int],
    export: Path,
    tmp_path: Path,
    csv_file: CsvWriter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    csv_file(tmp_path / "l.csv", f"{join},mass", *rows, "9876543,1")
    config = PackConfig(
        "dicom",
        export,
        tmp_path / "out",
        workers=1,
        labels=LabelOptions(tmp_path / "l.csv", join, columns=["mass"]),
        dicom=DicomOptions(key),
    )
    _, found = packed(config)
    assert sorted(meta["labels"]["mass"] for meta in found.values()) == expected
    said = capsys.readouterr().err
    assert "1 row without an image: l.csv line" in said
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir()) + said.encode()
    assert not any(text in written for text in (b"0123", b"0456", b"1.9.1", b"1.8.0", b"9876543", b"DOE"))


def test_a_dicom_table_that_matches_nothing_names_no_identifier(
    export: Path, tmp_path: Path, csv_file: CsvWriter
) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    csv_file(tmp_path / "l.csv", "PatientID,mass", "123,1")
    labels = LabelOptions(tmp_path / "l.csv", "PatientID", columns=["mass"])
    config = PackConfig("dicom", export, tmp_path / "out", workers=1, labels=labels, dicom=DicomOptions(key))
    with pytest.raises(UserError, match=r"; check the pseudonym key, the column and leading zeros") as raised:
        pack(config)
    assert not any(text in str(raised.value) for text in ("'123'", "0123", "DOE"))


def test_an_identifier_of_dicom_files_joins_no_other_dataset(tmp_path: Path) -> None:
    labels = LabelOptions(tmp_path / "l.csv", "PatientID", columns=["mass"])
    with pytest.raises(UserError, match=r"join=PatientID is for dataset dicom, not cell; join by key or path"):
        PackConfig("cell", tmp_path, tmp_path / "out", labels=labels)


def test_a_sample_without_a_later_field_has_the_record_that_older_versions_hashed() -> None:
    def sha256(**fields: Any) -> str:
        with closing(Catalog("set", iter([Sample("a", Path("a.png"), "p", **fields)]), seed=0)) as catalog:
            return catalog.sha256

    assert sha256() == "ac5075dc585ae9a1c1116c2226c41fbc6ad5ac1a17c1f2c142aae86b90492055"  # at commit e56b28c
    assert sha256(instance="0123456789abcdef") != sha256()
