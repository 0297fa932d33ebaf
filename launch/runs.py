"""`sternum runs FOLDER`: lists the runs below a folder, with their states, or serves them for Prometheus."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tabulate import tabulate

from infra.configuration.config import parse
from infra.configuration.options import setting
from infra.errors import UserError, require
from infra.words import printable
from launch.run_exporter import serve
from ssl_core.pretraining.run_facts import RunFacts, facts_of, find_runs

_HEADER: Final = ("run", "state", "step", "epoch", "loss", "last checkpoint", "restarts", "last sign")


@dataclass(frozen=True)
class RunsConfig:
    """The folder to search.

    Args:
        folder: folder with runs, at any depth, or a run
        port: serve the same facts for Prometheus on this port, until Ctrl-C or SIGTERM
        host: address on which to serve; 0.0.0.0 lets everybody in the network read them
    """

    folder: Path
    port: int | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        require(
            self.port is None or 0 < self.port < 65536, f"{setting(self, 'port')} must be between 1 and 65535; try 9464"
        )


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
        examples=("sternum runs runs", "sternum runs runs/paper", "sternum runs runs --port=9464"),
        subject="folder",
    )
    if not config.folder.is_dir():
        raise UserError(f"{config.folder} is no folder; name the folder that holds your runs")
    if config.port is not None:
        return serve(config.folder, config.port, config.host)
    runs = [facts_of(path) for path in find_runs(config.folder)]
    if not runs:
        raise UserError(f"there is no run below {config.folder}; name the folder that holds your runs")
    rows = [_row(run, config.folder, time.time()) for run in runs]
    sys.stdout.write(tabulate(rows, _HEADER, disable_numparse=True, colalign=("left", "left", *["right"] * 6)) + "\n")
    for run in runs:
        for note in run.notes:
            sys.stdout.write(printable(f"{run.path}: {note}") + "\n")
    return 0


def _row(run: RunFacts, folder: Path, now_s: float) -> tuple[str, ...]:
    step, epoch, loss = (run.metrics.get(name) for name in ("step", "epoch", "loss"))
    name = run.path.name if run.path == folder else str(run.path.relative_to(folder))
    return (
        printable(name),
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
