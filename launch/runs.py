"""`sternum runs FOLDER`: lists the runs below a folder, with their states."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tabulate import tabulate

from infra.config import parse
from infra.errors import RunFailed, UserError
from infra.json_files import BadJson, decode_json, read_json
from infra.status import Status
from ssl_core.checkpoints.checkpoint import find_checkpoints

_STATUS: Final = "status.json"
_METRICS: Final = "metrics.jsonl"
_OF_A_RUN: Final = {_STATUS, _METRICS, "checkpoints"}
_TAIL_BYTES: Final = 65536  # many lines of metrics
_SILENT_S: Final = 3600.0  # as `sternum supervise`, which then restarts a run
_HEADER: Final = ("run", "state", "step", "epoch", "loss", "last checkpoint", "restarts", "last sign")


@dataclass(frozen=True)
class RunsConfig:
    """The folder to search.

    Args:
        folder: folder with runs, at any depth, or a run
    """

    folder: Path


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


def main(arguments: Sequence[str]) -> int:
    """Print the runs below the folder, one line each, and then what is wrong with some."""
    config = parse(
        RunsConfig,
        arguments,
        command="runs",
        description=(
            "List the runs below a folder: state, step, epoch, loss, the last checkpoint, the number of restarts, and "
            "the time since the last sign of life. A run that was killed remains `running`, and after an hour is "
            "`silent`. Checkpoints are not verified."
        ),
        examples=("sternum runs runs", "sternum runs runs/paper"),
        subject="folder",
    )
    if not config.folder.is_dir():
        raise UserError(f"{config.folder} is no folder; name the folder that holds your runs")
    runs = [facts_of(path) for path in find_runs(config.folder)]
    if not runs:
        raise UserError(f"there is no run below {config.folder}; name the folder that holds your runs")
    rows = [_row(run, config.folder, time.time()) for run in runs]
    sys.stdout.write(tabulate(rows, _HEADER, disable_numparse=True, colalign=("left", "left", *["right"] * 6)) + "\n")
    for run in runs:
        for note in run.notes:
            sys.stdout.write(f"{run.path}: {note}\n")
    return 0


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


def _row(run: RunFacts, folder: Path, now_s: float) -> tuple[str, ...]:
    step, epoch, loss = (run.metrics.get(name) for name in ("step", "epoch", "loss"))
    name = run.path.name if run.path == folder else str(run.path.relative_to(folder))
    return (
        name,
        run.state,
        "-" if step is None else f"{step:.0f}",
        "-" if epoch is None else f"{epoch:.2f}",
        "-" if loss is None else f"{loss:.4f}",
        "-" if run.checkpoint is None else f"step {run.checkpoint}",
        str(run.restarts),
        _age(now_s - run.seen_s) if run.seen_s else "-",
    )


def _age(seconds: float) -> str:
    """Return a span of time in one unit: 45 s, 12 min, 5 h, 3 days."""
    for unit, length_s, least_s in (("days", 86400, 172800), ("h", 3600, 7200), ("min", 60, 120)):
        if seconds >= least_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
