import json
import math
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from infra.errors import UserError
from infra.monitoring.metrics import MetricsWriter, read_metrics


def test_metrics_stand_in_the_file_and_in_tensorboard(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, {"loss": 2.5, "speed/images_per_s": 7.0})
        metrics.write(20, {"loss": 1.5})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 2.5), (20, 1.5)]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 2.5), (20, 1.5)]


def test_a_resumed_run_drops_what_it_is_going_to_write_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (10, 20, 30):
            metrics.write(step, {"loss": 1.0})
    with MetricsWriter(tmp_path, steps_done=20) as metrics:
        metrics.write(30, {"loss": 3.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 3.0)]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.0), (20, 1.0), (30, 3.0)]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe",
        bytes(20),
        b"5",
        b'{"loss": 1.0}',
        b'{"step": "two"}',
        b'{"step": 2, "x": ' + b"[" * 100_000,
        b"",
        b"}",
    ],
)
def test_a_damaged_line_costs_a_warning_and_no_other_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n' + damage + b'\n{"step": 3, "text\xe2\x80\xa8": 1.0}\n')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    assert capsys.readouterr().err.startswith(f"warning: line 2 of {file} is damaged (")
    with MetricsWriter(tmp_path, steps_done=3) as metrics:  # a resumed run
        metrics.write(4, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in file.read_text().split("\n") if line] == [1, 3, 4]
    assert len(capsys.readouterr().err.splitlines()) == 1
    read_metrics(tmp_path)
    assert capsys.readouterr().err == ""


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_for_readers(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": NaN, "rate": -Infinity, "epoch": 0.5}\n')  # by an earlier version
    with MetricsWriter(tmp_path, steps_done=1) as metrics:
        metrics.write(2, {"loss": float("nan"), "epoch": 1})
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines())
    assert first == {"step": 1, "loss": None, "rate": None, "epoch": 0.5}
    assert (second["step"], second["loss"], second["epoch"]) == (2, None, 1)
    lines = read_metrics(tmp_path)
    assert [math.isnan(line["loss"]) for line in lines] == [True, True]
    assert [line["epoch"] for line in lines] == [0.5, 1]


@pytest.mark.parametrize("hostile", ["pipe", "endless"])
def test_what_is_no_file_is_refused_instead_of_read_for_ever(tmp_path: Path, hostile: str) -> None:
    path = tmp_path / "metrics.jsonl"
    if hostile == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"metrics\.jsonl is not a regular file"):
        read_metrics(tmp_path)
