"""Scores for TensorBoard: the paper's Figure 2 (b) and (c) as curves over the steps, and every C as hyperparameters."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from torch.utils.tensorboard import SummaryWriter

from evaluation.fitting.search import FittedProbe
from evaluation.results.results import ProbeResult

_FOLDER: Final = "probe"  # of the run's events


class Curves:
    """Writes to `run/events/probe`; what an earlier probe wrote there is dropped, so that each step stands once."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "events" / _FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)
        self._events = SummaryWriter(self.folder)
        self._shown: set[tuple[str, str, int]] = set()

    def show(self, rows: Iterable[ProbeResult]) -> None:
        """Write AUC and accuracy of checkpoints that have not been shown yet."""
        for row in rows:
            if row.kind != "checkpoint" or row.step is None or (row.dataset, row.preset, row.step) in self._shown:
                continue
            self._shown.add((row.dataset, row.preset, row.step))
            for name in ("auc", "acc"):
                value = getattr(row.scores, name).value
                self._events.add_scalar(f"probe/{row.dataset}/{row.preset}/{name}", value, row.step)
        self._events.flush()

    def show_hyperparameters(self, rows: Iterable[tuple[ProbeResult, Sequence[FittedProbe]]]) -> None:
        """Write every C of every row with its mean validation AUC: TensorBoard's page of hyperparameters."""
        number = 0
        for row, rounds in rows:
            for c in rounds[0].aucs:
                told = {"dataset": row.dataset, "preset": row.preset, "features": row.features, "C": c}
                auc = sum(one.aucs[c] for one in rounds) / len(rounds)
                self._events.add_hparams(told, {"probe/validation_auc": auc}, run_name=f"{number:04d}")
                number += 1

    def __enter__(self) -> "Curves":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
