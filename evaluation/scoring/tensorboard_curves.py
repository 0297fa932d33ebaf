"""A probe in TensorBoard: the paper's Figure 2 (b) and (c) by step, and the curves and C of the chosen classifiers.

docs/monitoring.md lists the tags.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Final, NamedTuple

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars, hparams, image, pr_curve, scalar

from evaluation.fitting.draws import pooled
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.datasets import TaskKey
from evaluation.results.rows import ProbeKind, ProbeResult, last_checkpoint
from evaluation.results.scores import Estimate
from evaluation.scoring.probe_results import predict
from evaluation.scoring.roc import sensitivities
from evaluation.scoring.scores import Predictions
from infra.arrays import UInt8
from infra.monitoring.event_file import EventFile
from infra.storage.files import file_name_of

_SCORES: Final = {"auc": "AUC", "acc": "accuracy"}
_BESIDE_LAST: Final[tuple[ProbeKind, ...]] = ("untrained", "initial", "compared")  # the last checkpoint has a run too
_LONGEST_NAME: Final = 200  # of a folder, in characters


def probe_events(run: Path) -> Path:
    """Return the folder of TensorBoard's run `probe`."""
    return run / "events" / "probe"


class Curves:
    """Writes the runs `probe` and `classifiers/...` of TensorBoard in `run/events`.

    They replace those of an earlier probe when there is something to show, so that each step appears once.
    """

    def __init__(self, run: Path) -> None:
        self._probe, self._classifiers = probe_events(run), run / "events" / "classifiers"
        self._shown: set[tuple[TaskKey, int]] = set()
        self._has_begun = False

    def show(self, rows: Sequence[ProbeResult]) -> None:
        """Write AUC and accuracy of the checkpoints that are not shown yet, with their intervals."""
        new = [row for row in rows if row.kind == "checkpoint" and row.step is not None]
        new = [row for row in new if (row.key, row.step) not in self._shown]
        is_first = not self._has_begun
        if is_first:
            self._begin()
        if not (new or is_first):
            return
        with EventFile(self._probe) as events:  # without a checkpoint too, because the projector belongs to a run
            if is_first:
                events.write(0, _bands(new))
            for row in new:
                assert row.step is not None
                events.write(row.step, _scores(row))
                self._shown.add((row.key, row.step))

    def show_picture(self, tag: str, pixels: UInt8, step: int) -> None:
        """Write a picture (H, W, C) at the step of a checkpoint."""
        with EventFile(self._probe) as events:
            events.write(step, [image(tag, pixels, dataformats="HWC")])

    def show_classifiers(self, rows: Iterable[tuple[ProbeResult, Sequence[ProbeCase]]], fitted: FittedCases) -> None:
        """Write ROC curve, precision-recall curve and hyperparameters of the chosen classifiers, after `show`.

        They are those of the last checkpoint, of the backbone before training, and of compared weights, with the chosen
        C. Each set and preset has one run of TensorBoard for each of these features, also if it asks several questions.

        Args:
            rows: the rows with their cases
            fitted: the fitted probes of each case
        """
        names = set[str]()
        for name, questions in _chosen(rows, fitted).items():
            folder = _free_name(name, names)
            with EventFile(self._classifiers / folder) as events:
                events.write(0, _hyperparameters(name, [question.result for question in questions]))
                for question in questions:
                    _write_curves(events, question)

    def _begin(self) -> None:
        """Remove what an earlier probe has shown."""
        self._has_begun = True
        for folder in (self._probe, self._classifiers):
            shutil.rmtree(folder, ignore_errors=True)


def _tags(row: ProbeResult, score: str) -> tuple[str, str, str]:
    """Return the tags of a score and of the ends of its interval, which are a section of their own."""
    name = f"{row.dataset}/{row.preset}/{score}"
    return f"probe/{name}", f"probe_interval/{name}_low", f"probe_interval/{name}_high"


def _scores(row: ProbeResult) -> Iterator[Summary]:
    for score in _SCORES:
        estimate: Estimate = getattr(row.scores, score)
        values = estimate.value, estimate.low, estimate.high
        for tag, value in zip(_tags(row, score), values, strict=True):
            if value is not None:
                yield scalar(tag, value)


def _bands(rows: Sequence[ProbeResult]) -> list[Summary]:
    """Return the page "Custom scalars", which shows each score with its interval as a band; none without intervals."""
    by_task = {row.key: row for row in rows if row.scores.auc.low is not None}
    charts = {
        title: {f"{row.dataset}, {row.preset}": ["Margin", list(_tags(row, score))] for row in by_task.values()}
        for score, title in _SCORES.items()
    }
    return [custom_scalars(charts)] if by_task else []


class _Name(NamedTuple):
    """Identifies a run of `classifiers`: the set with its task, the features, and the preset."""

    set: str
    features: str
    preset: str


class _Question(NamedTuple):
    """A row of the table, and its predictions."""

    result: ProbeResult
    predictions: Predictions


def _chosen(
    rows: Iterable[tuple[ProbeResult, Sequence[ProbeCase]]], fitted: FittedCases
) -> Mapping[_Name, list[_Question]]:
    """Return the questions of each run."""
    listed = list(rows)
    by_task: dict[TaskKey, list[ProbeResult]] = {}
    for result, _ in listed:
        by_task.setdefault(result.key, []).append(result)
    last = {key: last_checkpoint(of_task) for key, of_task in by_task.items()}
    chosen: dict[_Name, list[_Question]] = {}
    for result, row in listed:
        if result.kind in _BESIDE_LAST or result is last[result.key]:
            name = _Name(row[0].task.record.task_label, result.features, result.preset)
            probes = [probe for case in row for probe in fitted[case]]
            chosen.setdefault(name, []).append(_Question(result, predict(pooled(row), probes)))
    return chosen


def _hyperparameters(name: _Name, rows: Sequence[ProbeResult]) -> Iterator[Summary]:
    """Yield a row of TensorBoard's page "HParams"; its scores are means over the questions."""
    hyperparameters = {**name._asdict(), "kind": rows[0].kind, "C": median(c for row in rows for c in row.c)}
    metrics = {
        "classifier/auc": fmean(row.scores.auc.value for row in rows),
        "classifier/acc": fmean(row.scores.acc.value for row in rows),
        "classifier/validation_auc": fmean(row.validation_auc for row in rows),
    }
    yield from hparams(hyperparameters, metrics)
    yield from (scalar(tag, value) for tag, value in metrics.items())


def _write_curves(events: EventFile, question: _Question) -> None:
    """Write the ROC curve, with the false-positive rate in percent as the step, and the precision-recall curve."""
    result, predictions = question
    name = f"{result.dataset}/{result.preset}"
    percents = np.arange(101)
    for percent, sensitivity in zip(percents, sensitivities(predictions, percents / 100), strict=True):
        events.write(int(percent), [scalar(f"roc/{name}", sensitivity)])
    events.write(
        result.step or 0, [pr_curve(f"precision_recall/{name}", predictions.classes, predictions.probabilities)]
    )


def _free_name(name: _Name, taken: set[str]) -> str:
    """Return a folder for a run; names that differ only in other characters than letters and digits get numbers."""
    plain = "_".join(map(file_name_of, name))[:_LONGEST_NAME]
    free, number = plain, 1
    while free in taken:
        number += 1
        free = f"{plain}_{number}"
    taken.add(free)
    return free
