"""Supervision of real processes: small scripts that write the same files as a pretraining."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.errors import RunFailed, UserError
from infra.monitoring.status import Status, read_status, write_status
from launch import supervise as supervising
from launch.supervise import SuperviseConfig, main, supervise
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import save_checkpoint

# Each start does what the next word of `plan.txt` names.
SCRIPT = """
import os, sys, time
from pathlib import Path
from infra.monitoring.status import Status, write_status
run = Path(sys.argv[1])
starts = run / "starts"
number = int(starts.read_text()) if starts.exists() else 0
starts.write_text(str(number + 1))
word = (run / "plan.txt").read_text().split()[number]
if word == "save":
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "made" / "checkpoints" / f"step-{number + 1}").rename(run / "checkpoints" / f"step-{number + 1}")
    os._exit(1)
if word == "die":
    os.kill(os.getpid(), 9)
if word == "hang":
    time.sleep(600)
if word == "complain":  # as a launcher whose ranks refuse their start
    from infra.errors import RunFailed, UserError
    from launch.cli import fail
    fail(UserError("train.world_size=4 processes are expected,\\nbut 2 joined"))
    fail(RunFailed("another rank was lost"))
    sys.exit(1)
if word == "misuse":
    from infra.errors import UserError
    from launch.cli import fail
    sys.exit(fail(UserError("data.lanes=3 does not fit")))
if word == "refuse":
    write_status(run, Status("refused", 0, "data.lanes=3 does not fit"))
    sys.exit(1)
if word == "finish":
    write_status(run, Status("finished", 9))
if word == "finish-long-ago":  # by a clock that is behind
    write_status(run, Status("finished", 9, time_s=1.0))
"""


def save(run: Path, step: int) -> Path:
    return save_checkpoint(run, CheckpointState(step, 0.5, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), {}, {}).path


def command(run: Path, plan: str) -> list[str]:
    run.mkdir(exist_ok=True)
    (run / "plan.txt").write_text(plan)
    for number, word in enumerate(plan.split()):
        if word == "save":
            save(run / "made", number + 1)  # so that a script need not wait for torch
    return [sys.executable, "-c", SCRIPT, str(run)]


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def starts(run: Path) -> int:
    return int((run / "starts").read_text())


def test_a_run_that_dies_is_restarted_until_it_is_finished(tmp_path: Path) -> None:
    config = SuperviseConfig(tmp_path, patience=2, pause_s=0.0)
    assert supervise(config, command(tmp_path, "die die save die die save die finish")) == 0
    assert starts(tmp_path) == 8


def test_a_run_without_progress_is_given_up_after_the_stated_patience(tmp_path: Path) -> None:
    config = SuperviseConfig(tmp_path, patience=2, pause_s=0.0)
    with pytest.raises(RunFailed, match="3 times in a row without a new checkpoint"):
        supervise(config, command(tmp_path, "save die die die finish"))
    assert starts(tmp_path) == 4


def test_a_run_that_resumes_before_a_damaged_checkpoint_makes_progress(tmp_path: Path) -> None:
    """The one of step 900 has lost its weights, so that the run saves steps 1, 2 and 3 after it."""
    (save(tmp_path, 900) / "model.safetensors").unlink()
    config = SuperviseConfig(tmp_path, patience=0, pause_s=0.0)
    assert supervise(config, command(tmp_path, "save save save finish")) == 0


def test_a_refused_run_is_not_restarted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.lanes=3 does not fit"):
        supervise(SuperviseConfig(tmp_path, pause_s=0.0), command(tmp_path, "refuse finish"))
    assert starts(tmp_path) == 1


def test_an_error_of_a_launchers_processes_is_retried_and_quoted_at_the_end(tmp_path: Path) -> None:
    config = SuperviseConfig(tmp_path, patience=1, pause_s=0.0)
    with pytest.raises(
        RunFailed, match=r"its last error: train\.world_size=4 processes are expected, but 2 joined; fix"
    ):
        supervise(config, command(tmp_path, "complain complain finish"))
    assert starts(tmp_path) == 2


def test_only_the_error_of_the_last_start_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="see its last error above"):
        supervise(SuperviseConfig(tmp_path, patience=1, pause_s=0.0), command(tmp_path, "complain die"))


def test_a_command_that_refuses_its_arguments_is_not_restarted_and_quoted(tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", 3, time_s=time.time() + 60))  # left by a killed start
    with pytest.raises(UserError, match=r"^data\.lanes=3 does not fit$"):
        supervise(SuperviseConfig(tmp_path, pause_s=0.0), command(tmp_path, "misuse finish"))
    assert starts(tmp_path) == 1


def test_a_budget_of_restarts_ends_even_a_run_with_progress(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="2 restarts are used up"):
        supervise(SuperviseConfig(tmp_path, restarts=2, pause_s=0.0), command(tmp_path, "save save save save"))
    assert starts(tmp_path) == 3


def test_a_run_without_new_metrics_is_killed_and_restarted(tmp_path: Path) -> None:
    config = SuperviseConfig(tmp_path, pause_s=0.0, stall_s=2.0)
    assert supervise(config, command(tmp_path, "hang finish")) == 0
    assert starts(tmp_path) == 2


def test_workers_that_outlive_their_launcher_are_killed_before_the_next_start(tmp_path: Path) -> None:
    """The launcher dies at once; its worker, in a session of its own, would go on writing into the run folder."""
    script = f"""
import subprocess, sys
from pathlib import Path
from infra.monitoring.status import Status, write_status
pid = Path({str(tmp_path)!r}) / "pid"
if pid.exists():
    write_status(pid.parent, Status("finished", 1))
else:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pid.write_text(str(worker.pid))
    sys.exit(1)
"""
    assert supervise(SuperviseConfig(tmp_path, pause_s=0.0), [sys.executable, "-c", script]) == 0
    assert has_ended(int((tmp_path / "pid").read_text()))


def test_a_stop_signal_reaches_the_command_and_ends_the_supervision(tmp_path: Path) -> None:
    words = ["supervise", str(tmp_path), "--", *command(tmp_path, "hang hang")]
    process = subprocess.Popen([sys.executable, "-m", "launch", *words], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "starts").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGTERM stopped the run at step 0" in errors
    assert starts(tmp_path) == 1


def test_a_second_ctrl_c_kills_the_command_at_once(tmp_path: Path) -> None:
    """The first one stops it with a checkpoint; here the command does not obey."""
    stubborn = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "Path(sys.argv[1], 'ready').write_text(str(os.getpid())); time.sleep(600)"
    )
    words = ["supervise", str(tmp_path), "--", sys.executable, "-c", stubborn, str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "launch", *words], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "SIGINT stopped the run at step 0; the same command resumes it" in errors
    assert has_ended(int((tmp_path / "ready").read_text()))


# The launcher passes no signal on to its worker, which writes its status half a second after a stop signal.
DEAF_LAUNCHER = """
import os, subprocess, sys, time
worker = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
subprocess.Popen(worker, env={**os.environ, "RANK": "0"}, start_new_session=True)
time.sleep(600)
"""
WORKER = """
import os, signal, sys, time
from pathlib import Path
from infra.monitoring.status import Status, write_status
run = Path(sys.argv[1])
def stop(number, frame):
    time.sleep(0.5)
    write_status(run, Status("preempted", 7))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(run / "pid").write_text(str(os.getpid()))
(run / "pid").rename(run / "ready")
time.sleep(600)
"""


def stop_once_ready(run: Path) -> None:
    def stop() -> None:
        while not (run / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()


def test_a_stop_signal_reaches_a_worker_whose_launcher_does_not_pass_it_on(tmp_path: Path) -> None:
    stop_once_ready(tmp_path)
    with pytest.raises(RunFailed, match="SIGTERM stopped the run"):
        supervise(SuperviseConfig(tmp_path), [sys.executable, "-c", DEAF_LAUNCHER, WORKER, str(tmp_path)])
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "preempted"


def test_a_worker_that_does_not_obey_a_stop_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "_SAVE_S", 1.0)
    stubborn = WORKER.replace("SIGTERM, stop", "SIGTERM, signal.SIG_IGN")
    stop_once_ready(tmp_path)
    with pytest.raises(RunFailed, match="SIGTERM stopped the run"):
        supervise(SuperviseConfig(tmp_path), [sys.executable, "-c", DEAF_LAUNCHER, stubborn, str(tmp_path)])
    assert has_ended(int((tmp_path / "ready").read_text()))


def test_wrong_calls_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to supervise"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="cannot start 'no-such-program'"):
        main([str(tmp_path), "--", "no-such-program"])
    with pytest.raises(UserError, match="patience=-1"):
        main([str(tmp_path), "--patience=-1", "--", "true"])


def test_a_finished_run_is_believed_whatever_the_clocks_say(tmp_path: Path) -> None:
    write_status(tmp_path, Status("finished", 3, time_s=time.time() + 3600))  # an earlier one; the run goes on since
    config = SuperviseConfig(tmp_path, patience=0, pause_s=0.0)
    assert supervise(config, command(tmp_path, "finish-long-ago die")) == 0
    assert starts(tmp_path) == 1


def test_a_damaged_status_is_none_and_the_run_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(b'{"state": "finished", "step": 3, "message": "\xff", "time_s": 1}')
    config = SuperviseConfig(tmp_path, patience=1, pause_s=0.0)
    assert supervise(config, command(tmp_path, "die finish")) == 0


def test_a_status_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    write_status(tmp_path, Status("finished", 3, time_s=time.time() + 3600))
    with pytest.raises(RunFailed, match="without a new checkpoint"):
        supervise(SuperviseConfig(tmp_path, patience=0, pause_s=0.0), command(tmp_path, "die"))
