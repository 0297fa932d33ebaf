from pathlib import Path

import pytest

from infra.monitoring.status import Status, read_status, write_status


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    status = Status("preempted", 12, "SIGTERM")
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status


@pytest.mark.parametrize(
    "content",
    [
        b'{"state": "asleep"',
        b'{"state": "asleep", "step": 1}',
        b'{"state": "running", "step": 3, "message": "a\xff", "time_s": 1}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"",
    ],
)
def test_a_damaged_status_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) is None
