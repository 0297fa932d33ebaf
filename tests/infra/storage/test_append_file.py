import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage.append_file import AppendFile
from tests.support.disk_faults import NoDisk, fill, small_disk

RECORD = b"x" * 999 + b"\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path, size_mb=1):
            yield tmp_path
    except NoDisk as error:
        pytest.skip(str(error))


def test_records_that_found_no_room_are_written_in_order_once_there_is_room(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = disk / "log"
    records = [bytes([ord("a") + number]) + RECORD for number in range(12)]
    with AppendFile(path) as file:
        file.write(records[0])
        filler = fill(disk, left_bytes=0)
        for record in records[1:11]:
            file.write(record)
            content = path.read_bytes()
            assert b"".join(records).startswith(content)
            assert content.endswith(b"\n")  # none of them in part
        assert len(path.read_bytes()) < 11 * len(records[0])
        filler.unlink()
        file.write(records[11])
    assert path.read_bytes() == b"".join(records)
    lines = capsys.readouterr().err.splitlines()
    assert ["ALARM" in line for line in lines] == [True, False]
    assert f"cannot write {path}: No space left on device" in lines[0]
    assert f"{path} is complete again" in lines[1]


def test_records_that_never_found_room_are_counted_at_the_end(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with AppendFile(disk / "log") as file:
        fill(disk, left_bytes=0)
        for _ in range(10):
            file.write(RECORD)
        whole = (disk / "log").stat().st_size // len(RECORD)
    assert f"ALARM: the last {10 - whole} lines of {disk / 'log'} are lost" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/log: "):
        AppendFile(tmp_path / "file" / "log")


def test_a_killed_process_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        AppendFile(tmp_path / "log").write(RECORD)
        os._exit(9)
    os.waitpid(child, 0)
    assert (tmp_path / "log").read_bytes() == RECORD
