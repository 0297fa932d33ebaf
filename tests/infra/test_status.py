from pathlib import Path

from infra.status import Status, read_status, write_status


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    status = Status("preempted", 12, "SIGTERM")
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status


def test_a_damaged_status_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "asleep"')
    assert read_status(tmp_path) is None
