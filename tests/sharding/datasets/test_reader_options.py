"""The options of readers on the command line, in the configuration and in the manifest."""

from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from launch import shard
from sharding.datasets import OPTIONS, READERS
from sharding.reading.manifests import read_manifest
from tests.sharding.conftest import CsvWriter, RadiographMaker


@pytest.mark.parametrize(("options", "recorded"), [([], "by_name"), (["--cell.patients=by_number"], "by_number")])
def test_options_of_the_packed_dataset_and_no_others_are_recorded(
    options: list[Any] | list[str], recorded: str, cell_root: Path, tmp_path: Path
) -> None:
    shard.main(["cell", f"--root={cell_root}", f"--out={tmp_path / 'out'}", "--workers=1", *options])
    recorded_options = read_manifest(tmp_path / "out").options
    assert {name: value for name, value in recorded_options.items() if "." in name} == {"cell.patients": recorded}


def test_folder_options_reach_the_reader_from_the_command_line(
    tmp_path: Path, csv_file: CsvWriter, radiograph: RadiographMaker
) -> None:
    csv_file(tmp_path / "root" / "t.csv", "file,who", "1.png,a", "2.png,a")
    for name in ("1.png", "2.png"):
        radiograph(1).save(tmp_path / "root" / name)
    options = ["--folder.csv=t.csv", "--folder.path=file", "--folder.patient=who", "--workers=1"]
    shard.main(["folder", f"--root={tmp_path / 'root'}", f"--out={tmp_path / 'out'}", *options])
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.samples, manifest.patients) == (2, 1)
    assert (manifest.options["folder.csv"], manifest.options["folder.label"]) == ("t.csv", None)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ([], "name a table of the images, folder.csv, with the patient column: folder.patient\n"),
        (["--folder.csv=t.csv"], "intervals; name the patient column: folder.patient\n"),
    ],
)
def test_images_without_patients_are_warned_of_with_the_options_that_name_them(
    options: list[str], way_out: str, tmp_path: Path, radiograph: RadiographMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root" / "sick").mkdir(parents=True)
    radiograph(1).save(tmp_path / "root" / "sick" / "1.png")
    if options:
        (tmp_path / "root" / "t.csv").write_text("path\nsick/1.png\n")
    shard.main(["folder", f"--root={tmp_path / 'root'}", f"--out={tmp_path / 'out'}", "--workers=1", *options])
    assert way_out in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chexpert", "--cell.patients=by_number"], r"cell\.\* are options of dataset cell, not of chexpert"),
        (["folder", "--folder.label=class"], r"folder\.label=class describes a table; name the table too: folder\.csv"),
        (["cell", "--cell.patients=strict"], r"cell\.patients.*by_name.*by_number"),
        (
            ["dicom", "--dicom.allow_identifier=true"],
            r"unknown key 'dicom\.allow_identifier'.*did you mean 'dicom\.allow_identifiers'",
        ),
    ],
)
def test_options_that_are_wrong_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        shard.main([*arguments, f"--root={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert "\n" not in str(raised.value)


def test_every_options_class_has_the_name_of_its_dataset() -> None:
    assert OPTIONS.keys() <= READERS.keys()


def test_help_explains_the_options_of_readers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        shard.main(["--help"])
    printed = capsys.readouterr().out
    for option in ("--cell.patients", "--folder.csv", "--folder.patient", "--dicom.allow_identifiers"):
        assert option in printed
