"""What the small files of a run say: its state, its newest metrics, its last checkpoint; without torch."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.errors import RunFailed
from infra.monitoring.status import Status
from infra.storage.json_files import BadJson, decode_json, read_json
from ssl_core.checkpoints.checkpoint import find_checkpoints

_STATUS: Final = "status.json"
_METRICS: Final = "metrics.jsonl"
_OF_A_RUN: Final = {_STATUS, _METRICS, "checkpoints"}
_TAIL_BYTES: Final = 65536  # many lines of metrics
_SILENT_S: Final = 3600.0  # as `sternum supervise`, which then restarts a run


@dataclass(frozen=True)
class RunFacts:
    """What the files of a run say, without reading weights.

    Attributes:
        path: the run folder
        state: that of status.json; `silent` for a run that has been running without a line of metrics for an hour
        metrics: the last whole line of metrics.jsonl; empty without one
        checkpoint: step of the last finished checkpoint; None without one
        restarts: starts after the first, each of which leaves a file of events
        seen_s: time of the last sign of life, in seconds since 1970
        notes: damaged files, and the message of a run that was refused or failed
    """

    path: Path
    state: str
    metrics: dict[str, float | None]
    checkpoint: int | None
    restarts: int
    seen_s: float
    notes: list[str] = field(default_factory=list)


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders below a folder, itself included, in the order of their names; never look into one."""
    for path, folders, files in os.walk(folder):
        if _OF_A_RUN & {*folders, *files}:
            folders.clear()
            yield Path(path)
        folders.sort()


def facts_of(run: Path) -> RunFacts:
    """Read the small files of a run; a damaged one becomes a note."""
    notes: list[str] = []
    status = _status(run, notes)
    metrics = _last_metrics(run / _METRICS, notes)
    checkpoint = None
    try:
        checkpoint = next((found.step for found in reversed(find_checkpoints(run))), None)
    except RunFailed as error:
        notes.append(str(error))
    seen_s = max((_changed_s(run / name) for name in (_STATUS, _METRICS)), default=0.0)
    state: str = status.state if status else "unknown"
    if status and status.state == "running" and time.time() - seen_s > _SILENT_S:
        state = "silent"
    if status and status.state in ("refused", "failed"):
        notes.append(f"{status.state}: {status.message}")
    starts = len(list((run / "events").glob("events.out.tfevents.*")))
    return RunFacts(run, state, metrics, checkpoint, max(0, starts - 1), seen_s, notes)


def _status(run: Path, notes: list[str]) -> Status | None:
    try:
        return read_json(run / _STATUS, Status)
    except FileNotFoundError:
        notes.append(f"{_STATUS} is missing; its first start may be under way")
    except BadJson as error:
        notes.append(f"{_STATUS} is damaged: {error}; the next start of the run replaces it")
    return None


def _last_metrics(path: Path, notes: list[str]) -> dict[str, float | None]:
    """Return the last whole line of metrics, without reading what is before it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            *lines, _unfinished = file.read().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.append(f"{_METRICS} cannot be read: {error.strerror}")
        return {}
    for line in reversed(lines):
        with suppress(BadJson):
            return decode_json(line, dict[str, float | None])
    if lines:
        notes.append(f"{_METRICS} is damaged: none of its last lines can be read")
    return {}


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
