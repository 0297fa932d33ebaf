"""`sternum supervise --run_folder=RUN -- COMMAND ...`: starts a pretraining again for as long as that helps."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final
from uuid import uuid4

import psutil

from infra.config import parse
from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.status import Status, read_status
from launch.cli import ERRORS_FILE, guarded
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints, find_damage

_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_S: Final = 0.5
_GONE_S: Final = 60.0  # a killed process may take its time to give back a GPU
_SAVE_S: Final = 60.0  # what ranks get for their last checkpoint after a stop signal, when their launcher has gone
_MARK: Final = "STERNUM_SUPERVISED"  # an environment variable by which a command's processes are found again
# torchrun's workers else meet in the store of its agents, and what one that was killed has left there can make every
# later start of them fail.
_OWN_STORE: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True)
class SuperviseConfig:
    """How long it is worth starting again.

    Args:
        run_folder: the run that the command pretrains; its checkpoints tell whether there was progress
        restarts: most restarts in all
        patience: most restarts in a row without a new checkpoint that is whole
        pause_s: seconds before a restart, doubled for each one without progress, so that a node can come back
        stall_s: seconds without a line of metrics after which the command counts as hung and is killed
    """

    run_folder: Path
    restarts: int = 1000
    patience: int = 3
    pause_s: float = 5.0
    stall_s: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("restarts", "patience"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative; try 3")
        require(self.pause_s >= 0, f"pause_s={self.pause_s} must not be negative; try 5")
        require(self.stall_s > 0, f"stall_s={self.stall_s} must be positive; try 3600")


def main(arguments: Sequence[str]) -> int:
    """Run the command behind `--` until the run in the folder is finished, or starting again no longer helps."""
    words = list(arguments)
    border = words.index("--") if "--" in words else len(words)
    config = parse(
        SuperviseConfig,
        words[:border],
        command="supervise",
        description=(
            "Run a pretraining command; when it dies or hangs, run it again, which resumes from the last checkpoint. "
            "Ends when the run is finished, when it or the command's arguments are refused, and when --patience "
            "restarts in a row bring no new checkpoint. What processes of torchrun refuse before they hold the run's "
            "folder, such as too few machines or missing shards, may be mended: it is tried again for so long."
        ),
        examples=(
            "sternum supervise --run_folder=runs/paper -- torchrun --nproc-per-node=8 -m launch.pretrain \\",
            "    --config=launch/configs/gazda2021.yaml --data.shards=[shards/chexpert] --run_folder=runs/paper",
        ),
    )
    command = words[border + 1 :]
    require(bool(command), "nothing to supervise; name a command behind `--`: sternum supervise --help")
    return supervise(config, command)


def supervise(config: SuperviseConfig, command: Sequence[str]) -> int:
    """Run the command again and again; returns 0 once the run has ended as its configuration says.

    Raises UserError when the command refused its arguments or `status.json` says that the run is refused, and RunFailed
    when a signal ended it or there was no progress. What processes of torchrun refuse before they hold the run's folder
    shows in neither, since torchrun then ends with code 1: it is tried again, and quoted at last.
    """
    with tempfile.TemporaryDirectory() as folder:  # made once: later the disk may be full
        return _supervise(config, command, Path(folder) / "errors")


def _supervise(config: SuperviseConfig, command: Sequence[str], errors: Path) -> int:
    fruitless, reached = 0, _newest_step(config.run_folder)
    began_s = time.time()  # another node may have finished the run while this one's launcher failed
    for start in range(config.restarts + 1):
        errors.unlink(missing_ok=True)
        code, stopped_by = _run_once(command, config, errors)
        said = _first_line(errors)
        status = _status_since(config.run_folder, began_s)
        if status and status.state in ("finished", "paused"):
            return 0
        if status and status.state == "refused":
            raise UserError(status.message)
        if code == UserError.exit_code:
            raise UserError(said or f"{command[0]} refused its arguments; see above")
        before, reached = reached, _newest_step(config.run_folder)
        if stopped_by:
            raise RunFailed(f"{stopped_by} ended the run at step {reached}; the same command goes on there")
        fruitless = 0 if reached > before else fruitless + 1
        if fruitless > config.patience:
            why = f"it last said: {said}" if said else "see its last error above"
            raise RunFailed(
                f"{command[0]} ended with code {code} {fruitless} times in a row without a new checkpoint in "
                f"{config.run_folder}; {why}; mend that and give the same command again"
            )
        if start < config.restarts:
            pause_s = config.pause_s * 2 ** max(0, fruitless - 1)
            say(f"{command[0]} ended with code {code}; starting again in {pause_s:g} s (restart {start + 1})")
            time.sleep(pause_s)
    raise RunFailed(f"{config.restarts} restarts are used up; raise --restarts to go on")


def _newest_step(run: Path) -> int:
    """Return the step from which the run goes on: that of its newest whole checkpoint, 0 without one.

    A damaged one is passed over by the run too, which then saves steps that are lower: that is progress.
    """
    return next((checkpoint.step for checkpoint in reversed(find_checkpoints(run)) if _is_whole(checkpoint)), 0)


def _is_whole(checkpoint: Checkpoint) -> bool:
    try:
        return find_damage(checkpoint) is None
    except (UserError, RunFailed):  # of another version, say: nothing that this run goes on from
        return False


def _status_since(run: Path, began_s: float) -> Status | None:
    status = read_status(run)
    return status if status and status.time_s >= began_s else None


def _first_line(errors: Path) -> str:
    """Return the error that a start's others follow from, empty where none of its processes here has noted one."""
    try:
        return errors.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return ""


def _run_once(command: Sequence[str], config: SuperviseConfig, errors: Path) -> tuple[int, str | None]:
    """Run the command to its end; returns its exit code and the name of the signal that this process was sent.

    errors: where its processes note what they end with.
    """
    mark = uuid4().hex
    environment = {_OWN_STORE: "1", **os.environ, _MARK: mark, ERRORS_FILE: str(errors)}
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise UserError(f"cannot start {command[0]!r}: {error.strerror}; check the command behind `--`") from error
    began_s = time.time()
    with _forwarding(process) as received:
        while process.poll() is None:
            time.sleep(_POLL_S)
            if received:
                _let_save(mark)
            if time.time() - max(began_s, _wrote_s(config.run_folder)) > config.stall_s:
                say(f"no line of metrics for {config.stall_s:g} s; killing {command[0]}")
                _kill(mark)
        if received:
            _let_save(mark)
        # What a launcher that was killed has left behind; until it is gone the run's folder is in use.
        until_s = time.monotonic() + _GONE_S
        while _kill(mark) and time.monotonic() < until_s:
            time.sleep(_POLL_S / 10)
    return process.wait(), (received[0] if received else None)


@contextmanager
def _forwarding(process: "subprocess.Popen[bytes]") -> Iterator[list[str]]:
    """Pass stop signals on to the command while it runs; gives the list of those that came."""
    received: list[str] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        process.send_signal(signal.SIGTERM if number == signal.SIGUSR1 else number)  # torchrun would die of SIGUSR1

    before: dict[signal.Signals, Any] = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wrote_s(run: Path) -> float:
    """Return when the last line of metrics was written, 0 where there is none."""
    try:
        return (run / "metrics.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def _let_save(mark: str) -> None:
    """Ask the ranks themselves to stop, and wait until they have: not every launcher passes a signal on (DeepSpeed's).

    One that is told twice saves once; one that has not ended after `_SAVE_S` is left to whoever kills it.
    """
    for process in _ranks(mark):
        with suppress(psutil.Error):
            process.terminate()
    until_s = time.monotonic() + _SAVE_S
    while _ranks(mark) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _ranks(mark: str) -> list[psutil.Process]:
    """Return the command's processes that a launcher has numbered, but not what those have started in their turn."""
    numbered = {process.pid: process for process, environment in _marked(mark) if "RANK" in environment}
    ranks = []
    for process in numbered.values():
        with suppress(psutil.Error):
            if process.ppid() not in numbered:
                ranks.append(process)
    return ranks


def _kill(mark: str) -> int:
    """Kill all processes that carry the mark: a launcher's workers too, which live on in sessions of their own.

    Returns how many there were.
    """
    killed = 0
    for process, _ in _marked(mark):
        with suppress(psutil.Error):
            process.kill()
            killed += 1
    return killed


def _marked(mark: str) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Give the living processes that carry the mark, with their environments."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get(_MARK) == mark:
                yield process, environment


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
