"""Scores in TensorBoard: the paper's Figure 2 (b) and (c) as curves over the steps, and each C as a hyperparameter."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from torch.utils.tensorboard import SummaryWriter

from evaluation.fitting.search import FittedProbe
from evaluation.results.datasets import TaskKey
from evaluation.results.rows import ProbeResult

_FOLDER: Final = "probe"  # inside the run's events


class Curves:
    """Writes to `run/events/probe`, after removing the events of an earlier probe, so that each step appears once."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "events" / _FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)
        self._events = SummaryWriter(self.folder)
        self._shown: set[tuple[TaskKey, int]] = set()

    def show(self, rows: Iterable[ProbeResult]) -> None:
        """Write AUC and accuracy of the checkpoints that are not shown yet."""
        for row in rows:
            if row.kind != "checkpoint" or row.step is None or (row.key, row.step) in self._shown:
                continue
            self._shown.add((row.key, row.step))
            for name in ("auc", "acc"):
                value = getattr(row.scores, name).value
                self._events.add_scalar(f"probe/{row.dataset}/{row.preset}/{name}", value, row.step)
        self._events.flush()

    def show_hyperparameters(self, rows: Iterable[tuple[ProbeResult, Sequence[FittedProbe]]]) -> None:
        """Write the mean validation AUC of each C of each row, for TensorBoard's hyperparameter page."""
        number = 0
        for row, probes in rows:
            for c in probes[0].aucs:
                hyperparameters = {"dataset": row.dataset, "preset": row.preset, "features": row.features, "C": c}
                auc = sum(probe.aucs[c] for probe in probes) / len(probes)
                self._events.add_hparams(hyperparameters, {"probe/validation_auc": auc}, run_name=f"{number:04d}")
                number += 1

    def __enter__(self) -> "Curves":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
