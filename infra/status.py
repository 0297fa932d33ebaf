"""`status.json`: how a run stands, for whoever starts it again. Exit codes of launchers do not tell."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from infra.files import write_atomic

State = Literal["running", "finished", "paused", "preempted", "refused", "failed"]

_NAME: Final = "status.json"


@dataclass(frozen=True)
class Status:
    """A run at a moment.

    state: running (or killed since); finished; paused (at train.max_steps); preempted (stopped by a signal, with a
    checkpoint); refused (wrong configuration or data: starting again does not help); failed.
    step: steps done by then. message: one line for people. time_s: seconds since 1970.
    """

    state: State
    step: int
    message: str = ""
    time_s: float = field(default_factory=time.time)


def write_status(run: Path, status: Status) -> None:
    """Replace `run/status.json` atomically."""
    write_atomic(run / _NAME, msgspec.json.format(msgspec.json.encode(status), indent=1))


def read_status(run: Path) -> Status | None:
    """Return what the last process said of the run, None where there is nothing readable."""
    try:
        return msgspec.json.decode((run / _NAME).read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        return None
