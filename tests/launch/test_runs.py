import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from infra.errors import UserError
from infra.monitoring.metrics import MetricsWriter
from infra.monitoring.status import Status, write_status
from launch.runs import main
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import save_checkpoint
from ssl_core.pretraining.run_facts import facts_of, find_runs

HOUR_S = 3600
ROOT = Path(__file__).parents[2]


def write_run(folder: Path, state: Status, starts: int = 1) -> None:
    for start in range(starts):
        with MetricsWriter(folder, steps_done=start) as metrics:
            metrics.write(start + 1, {"epoch": 0.5 * (start + 1), "loss": 3.0 - start})
    save_checkpoint(folder, CheckpointState(starts, 0.5, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), {}, {})
    write_status(folder, state)


def test_runs_at_any_depth_are_listed_with_what_their_files_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "first", Status("finished", 2), starts=2)
    write_run(tmp_path / "seeds" / "0", Status("failed", 1, "no space left"))
    (tmp_path / "shards" / "cell").mkdir(parents=True)
    assert main([str(tmp_path)]) == 0
    header, _, first, second, *notes = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "epoch", "loss", "last", "checkpoint", "restarts", "last", "sign"]
    assert first.split()[:8] == ["first", "finished", "2", "1.00", "2.0000", "step", "2", "1"]
    assert second.split()[:8] == ["seeds/0", "failed", "1", "0.50", "3.0000", "step", "1", "0"]
    assert notes == [f"{tmp_path}/seeds/0: failed: no space left"]


def test_a_message_stays_one_line_and_does_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path / "a\x1b[2J", Status("failed", 1, "\x1b]0;title\x07no\nspace left"))
    assert main([str(tmp_path)]) == 0
    _, _, row, note = capsys.readouterr().out.splitlines()
    assert row.split()[:2] == [r"a\x1b[2J", "failed"]
    assert note == rf"{tmp_path}/a\x1b[2J: failed: \x1b]0;title\x07no space left"


def test_a_run_that_was_killed_long_ago_is_silent(tmp_path: Path) -> None:
    write_run(tmp_path, Status("running", 1))
    assert facts_of(tmp_path).state == "running"
    for name in ("status.json", "metrics.jsonl"):
        os.utime(tmp_path / name, times=(0, time.time() - 2 * HOUR_S))
    assert facts_of(tmp_path).state == "silent"


def test_damaged_files_are_named_and_hide_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", Status("running", 1), starts=2)
    (tmp_path / "a" / "status.json").write_bytes(b"\0\0")
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo\n{"step": 4')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    assert main([str(tmp_path)]) == 0
    _, _, first, second, *notes = capsys.readouterr().out.splitlines()
    assert first.split()[:5] == ["a", "unknown", "2", "1.00", "2.0000"]
    assert second.split()[:5] == ["b", "unknown", "-", "-", "-"]
    assert [note.partition(" is ")[0] for note in notes] == [
        f"{tmp_path}/a: status.json",
        f"{tmp_path}/b: status.json",
        f"{tmp_path}/b: metrics.jsonl",
    ]


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    line = b'{"step": 1, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(b"damaged\n" + line * 100_000 + b'{"step": 2, "loss": null}\n')
    facts = facts_of(tmp_path)
    assert facts.metrics == {"step": 2, "loss": None}
    assert [note.partition(" is ")[0] for note in facts.notes] == ["status.json"]


def test_a_run_is_not_searched_for_runs(tmp_path: Path) -> None:
    write_run(tmp_path, Status("finished", 1))
    write_run(tmp_path / "probes" / "inner", Status("finished", 1))
    assert list(find_runs(tmp_path)) == [tmp_path]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="name the folder that holds your runs"):
        main([str(tmp_path / name)])


def scraped(folder: Path) -> dict[str, float]:
    """Return the samples of one scrape over HTTP, by their names and labels."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "launch", "runs", str(folder), f"--port={port}"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert server.stderr.readline().endswith(f"at http://127.0.0.1:{port}/metrics\n")
        listening = [connection.laddr[0] for connection in psutil.Process(server.pid).net_connections()]
        lines = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text.splitlines()
        server.terminate()
        assert server.wait(60) == 143
    assert set(listening) == {"127.0.0.1"}
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def test_prometheus_reads_the_facts_of_every_run_and_grafana_asks_for_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "first", Status("running", 2), starts=2)
    write_run(tmp_path / "seeds" / "0", Status("failed", 1, "no space left"))
    samples = scraped(tmp_path)
    assert samples['sternum_run_state{run="first",state="running"}'] == 1
    assert samples['sternum_run_state{run="seeds/0",state="failed"}'] == 1
    assert samples['sternum_metric{name="loss",run="first"}'] == 2.0
    assert samples['sternum_checkpoint_step{run="first"}'] == 2
    assert samples['sternum_restarts{run="first"}'] == 1
    assert samples['sternum_damaged_files{run="seeds/0"}'] == 1
    assert time.time() - samples['sternum_last_sign_seconds{run="first"}'] < HOUR_S
    asked = set(re.findall(r"sternum_\w+", (ROOT / "infra" / "grafana" / "sternum.json").read_text()))
    assert asked == {name.partition("{")[0] for name in samples}


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: Address already in use; choose a free port"):
            main([str(tmp_path), f"--port={port}"])
