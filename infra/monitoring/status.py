"""The state of a run in `status.json`, for the program that restarts it; launchers' exit codes do not show it."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from infra.storage.files import write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json

State = Literal["running", "finished", "paused", "preempted", "refused", "failed"]

_NAME: Final = "status.json"


@dataclass(frozen=True)
class Status:
    """The state of a run at one moment.

    Attributes:
        state: running (or killed since); finished; paused (at the step limit); preempted (stopped by a signal, with a
            checkpoint); refused (wrong configuration or data, so a restart does not help); failed
        step: number of steps done
        message: one line for people
        time_s: seconds since 1970
    """

    state: State
    step: int
    message: str = ""
    time_s: float = field(default_factory=time.time)


def write_status(run: Path, status: Status) -> None:
    """Replace `run/status.json` atomically."""
    write_atomic(run / _NAME, encode_json(status))


def read_status(run: Path) -> Status | None:
    """Return the last status that a process of the run wrote, None if it is missing or unreadable."""
    try:
        return read_json(run / _NAME, Status)
    except (FileNotFoundError, BadJson):
        return None
