"""`sternum supervise RUN -- COMMAND ...`: restarts a pretraining command for as long as that helps."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil

from infra.configuration.config import parse
from infra.configuration.options import require_at_least, require_positive
from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.monitoring.status import read_status
from infra.signals import handle_signals
from launch.cli import ERRORS_FILE, split_at_dashes
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints, find_damage

_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_S: Final = 0.5
_GONE_S: Final = 60.0  # a killed process may take a while to free its GPU
_SAVE_S: Final = 60.0  # for the last checkpoint of ranks after a stop signal
_MARK: Final = "STERNUM_SUPERVISED"  # environment variable that marks the processes of a command
# Otherwise torchrun's workers meet in the store of its agents, where the remains of a killed worker can make every
# later start fail.
_OWN_STORE: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True)
class SuperviseConfig:
    """The run, and the limits of its restarts.

    Args:
        run_folder: the run that the command pretrains; new checkpoints in it count as progress
        restarts: largest total number of restarts
        patience: largest number of restarts in a row without a new, undamaged checkpoint
        pause_s: seconds before a restart, doubled after each one without progress, so that a node can recover
        stall_s: seconds without a new line of metrics after which the command counts as hung and is killed
    """

    run_folder: Path
    restarts: int = 1000
    patience: int = 3
    pause_s: float = 5.0
    stall_s: float = 3600.0

    def __post_init__(self) -> None:
        for name, hint in (("restarts", "try 1000"), ("patience", "try 3"), ("pause_s", "try 5")):
            require_at_least(self, name, 0, hint)
        require_positive(self, "stall_s", "try 3600")


def main(arguments: Sequence[str]) -> int:
    """Run the command after `--` until its run is finished or another restart would not help."""
    words, command = split_at_dashes(arguments)
    config = parse(
        SuperviseConfig,
        words,
        command="supervise",
        description=(
            "Run the pretraining command after `--`, and restart it when it dies or hangs; it then resumes from the "
            "last checkpoint. Supervision ends when the run is finished, when the command rejects its configuration or "
            "data, or after --patience restarts in a row without a new checkpoint. If torchrun's processes fail before "
            "they open the run folder, for example because machines or shards are missing, supervise also tries "
            "again, because they may come back."
        ),
        examples=(
            "sternum supervise runs/paper -- torchrun --nproc-per-node=8 -m launch.pretrain runs/paper \\",
            "    --config=gazda2021 --data.shards=[shards/chexpert]",
        ),
        subject="run_folder",
    )
    require(bool(command), "nothing to supervise; add a command after `--`: sternum supervise --help")
    return supervise(config, command)


def supervise(config: SuperviseConfig, command: Sequence[str]) -> int:
    """Run the command until its run is finished or paused, and return 0.

    If torchrun's processes refuse to start before they open the run folder, neither the exit code (torchrun's is 1) nor
    `status.json` shows that. Such a command is restarted too, and its error is quoted at the end.

    Raises:
        UserError: if the command refuses its arguments, or `status.json` says that the run is refused
        RunFailed: if a signal stopped the run, or there was no progress for too long
    """
    with tempfile.TemporaryDirectory() as folder:  # created now, since the disk may be full later
        return _supervise(config, command, Path(folder) / "errors")


def _supervise(config: SuperviseConfig, command: Sequence[str], errors: Path) -> int:
    fruitless, reached = 0, _newest_step(config.run_folder)
    # A status counts if it has changed since then: the clocks of the nodes may differ, and another node may finish the
    # run while this one's launcher fails.
    earlier = read_status(config.run_folder)
    for start in range(config.restarts + 1):
        errors.unlink(missing_ok=True)
        code, stopped_by = _run_once(command, config, errors)
        quoted = _first_line(errors)
        status = read_status(config.run_folder)
        status = None if status == earlier else status
        if status and status.state in ("finished", "paused"):
            return 0
        if status and status.state == "refused":
            raise UserError(status.message)
        if code == UserError.exit_code:
            raise UserError(quoted or f"{command[0]} refused its arguments; see its error above")
        before, reached = reached, _newest_step(config.run_folder)
        if stopped_by:
            raise RunFailed(f"{stopped_by} stopped the run at step {reached}; the same command resumes it")
        fruitless = 0 if reached > before else fruitless + 1
        if fruitless > config.patience:
            why = f"its last error: {quoted}" if quoted else "see its last error above"
            raise RunFailed(
                f"{command[0]} ended with code {code} {fruitless} times in a row without a new checkpoint in "
                f"{config.run_folder}; {why}; fix that and run the same command again"
            )
        if start < config.restarts:
            pause_s = config.pause_s * 2 ** max(0, fruitless - 1)
            say(f"{command[0]} ended with code {code}; restarting in {pause_s:g} s (restart {start + 1})")
            time.sleep(pause_s)
    raise RunFailed(f"{config.restarts} restarts are used up; raise --restarts to continue")


def _newest_step(run: Path) -> int:
    """Return the step from which the run resumes: that of its newest undamaged checkpoint, 0 without one.

    The run skips a damaged checkpoint too, and then saves lower steps, which count as progress.
    """
    return next((checkpoint.step for checkpoint in reversed(find_checkpoints(run)) if _is_whole(checkpoint)), 0)


def _is_whole(checkpoint: Checkpoint) -> bool:
    try:
        return find_damage(checkpoint) is None
    except (UserError, RunFailed):  # for example of another version: the run cannot resume from it
        return False


def _first_line(errors: Path) -> str:
    """Return the first error of the last start, which caused its others; empty if no process here wrote one."""
    try:
        return errors.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return ""


def _run_once(command: Sequence[str], config: SuperviseConfig, errors: Path) -> tuple[int, str | None]:
    """Run the command to its end, with `errors` as the file to which its processes append their errors.

    Returns:
        The exit code, and the name of the signal that this process received, if any.
    """
    mark = uuid4().hex
    environment = {_OWN_STORE: "1", **os.environ, _MARK: mark, ERRORS_FILE: str(errors)}
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise UserError(f"cannot start {command[0]!r}: {error.strerror}; check the command after `--`") from error
    began_s = time.time()
    received: list[str] = []

    def forward(number: signal.Signals) -> None:
        received.append(number.name)
        if received.count("SIGINT") > 1:
            _kill(mark)  # Ctrl-C again: at once, without a checkpoint
        else:
            # Not SIGUSR1, which would kill torchrun, nor SIGINT, which a terminal has already sent to the command.
            process.terminate()

    with handle_signals(_FORWARDED, forward):
        while process.poll() is None:
            time.sleep(_POLL_S)
            if received:
                _stop_ranks(mark)
            if time.time() - max(began_s, _last_metrics_s(config.run_folder)) > config.stall_s:
                say(f"no new line of metrics for {config.stall_s:g} s; killing {command[0]}")
                _kill(mark)
        if received:
            _stop_ranks(mark)
        # Processes that outlive a killed launcher keep the run folder locked.
        until_s = time.monotonic() + _GONE_S
        while _kill(mark) and time.monotonic() < until_s:
            time.sleep(_POLL_S / 10)
    return process.wait(), (received[0] if received else None)


def _last_metrics_s(run: Path) -> float:
    """Return the time of the last line of metrics, 0 without one."""
    try:
        return (run / "metrics.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def _stop_ranks(mark: str) -> None:
    """Send a stop signal to the ranks, and wait for at most `_SAVE_S` until they end.

    Not every launcher passes a signal on; DeepSpeed's does not. A rank that gets the signal twice saves once.
    """
    for process in _ranks(mark):
        with suppress(psutil.Error):
            process.terminate()
    until_s = time.monotonic() + _SAVE_S
    while _ranks(mark) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _ranks(mark: str) -> list[psutil.Process]:
    """Return the processes to which a launcher gave a rank, without the processes that those started."""
    numbered = {process.pid: process for process, environment in _marked(mark) if "RANK" in environment}
    ranks = []
    for process in numbered.values():
        with suppress(psutil.Error):
            if process.ppid() not in numbered:
                ranks.append(process)
    return ranks


def _kill(mark: str) -> int:
    """Kill all processes with the mark, and return their number.

    A launcher's workers run in their own sessions, so they do not end with it.
    """
    killed = 0
    for process, _ in _marked(mark):
        with suppress(psutil.Error):
            process.kill()
            killed += 1
    return killed


def _marked(mark: str) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Yield the running processes with the mark, each with its environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get(_MARK) == mark:
                yield process, environment
