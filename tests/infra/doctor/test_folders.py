import subprocess
from pathlib import Path

import pytest

from infra.doctor.folders import check_folder, check_store
from tests.support.disk_faults import NoDisk, small_disk


def test_a_folder_that_can_be_written_and_locked_is_right_and_stays_as_it_was(tmp_path: Path) -> None:
    [finding] = check_folder(tmp_path)
    assert not finding.is_wrong
    assert finding.text.startswith(f"{tmp_path} can be written and locked, ")
    [finding] = check_folder(tmp_path / "runs" / "first")
    assert not finding.is_wrong
    assert f"(not there yet; tried in {tmp_path})" in finding.text
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_found(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path, size_mb=1):
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
            [finding] = check_folder(tmp_path)
    except NoDisk as error:
        pytest.skip(str(error))
    assert finding.text.endswith("the file system is read-only")
    assert finding.mend == "choose another folder"


def test_a_store_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    [finding] = check_store(f"file://{tmp_path}")
    assert not finding.is_wrong
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    [finding] = check_store(f"file://{tmp_path}/file")
    assert finding.is_wrong
    [finding] = check_store("ftp://server/folder")
    assert finding.is_wrong
