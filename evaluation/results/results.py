"""`results.json`: all records of a probe, and the notes that a reader needs before believing them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from evaluation.results.backbones import OutsideBackbone, Run
from evaluation.results.datasets import Dataset, TaskKey
from evaluation.results.rows import BACKBONES, AttributeAuc, Comparison, FewLabels, ProbeResult, Shift, last_checkpoint
from evaluation.results.task_scores import MeanRow, TaskScores
from infra.errors import UserError
from infra.storage.files import write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json

RESULTS_NAME: Final = "results.json"
# Version 3 added the methods of intervals and the p-values of comparisons; version 2 is still read, without these.
VERSION: Final = 3
_READABLE: Final = (2, VERSION)


@dataclass(frozen=True)
class PredictionsFile:
    """The file beside `results.json` with the predictions for each test image: its name, lines and SHA-256."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Results:
    """The content of `results.json`.

    `run` is None if backbones were probed without a run; then the first of `outside` stands where a run has its last
    checkpoint. `predictions` is None in results of older versions.
    """

    version: int
    sternum: str
    command: str
    run: Run | None
    config: dict[str, Any]
    protocol: dict[str, dict[str, Any]]
    datasets: list[Dataset]
    rows: list[ProbeResult]
    comparisons: list[Comparison]
    few_labels: list[FewLabels]
    timing: dict[str, float]
    notes: list[str]
    tasks: list[TaskScores] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    predictions: PredictionsFile | None = None
    outside: list[OutsideBackbone] = field(default_factory=list)
    attribute_aucs: list[AttributeAuc] = field(default_factory=list)

    @property
    def judged(self) -> str:
        """What the other features are compared with, in words."""
        first = "".join(f" ({backbone.name})" for backbone in self.outside[:1])  # a stranger's file may name none
        return "the last checkpoint" if self.run else f"the first backbone{first}"

    @property
    def fraction_percent(self) -> int:
        """Share of the pretraining set; 100 without a run, whose backbones saw all of whatever they were trained on."""
        return self.run.fraction_percent if self.run else 100

    def judged_rows(self, dataset: Dataset) -> list[ProbeResult]:
        """Return the rows of one dataset for a table of several probes: the last checkpoint, or all backbones."""
        rows = self.rows_of(dataset)
        if self.run:
            return [row for row in [last_checkpoint(rows)] if row]
        return sorted((row for row in rows if row.kind in BACKBONES), key=lambda row: row.kind)

    def judged_means(self, task: TaskScores) -> list[MeanRow]:
        """Return the mean scores of a task for the same rows."""
        if self.run:
            return [row for row in [task.last] if row]
        return sorted((row for row in task.rows if row.kind in BACKBONES), key=lambda row: row.kind)

    @property
    def single(self) -> list[Dataset]:
        """The datasets of tasks with one question; the others are parts of `tasks`."""
        return [dataset for dataset in self.datasets if not dataset.question]

    def questions_of(self, task: TaskScores) -> list[Dataset]:
        """Return the dataset of each label of a task."""
        by_key = {dataset.key: dataset for dataset in self.datasets}
        return [by_key[TaskKey(label, task.preset)] for label in task.datasets]

    def rows_of(self, dataset: Dataset) -> list[ProbeResult]:
        """Return the rows of one dataset and preset."""
        return [row for row in self.rows if row.key == dataset.key]

    def comparisons_of(self, dataset: Dataset | TaskScores) -> list[Comparison]:
        """Return the comparisons on one dataset and preset, or of the mean AUCs of a task."""
        return [item for item in self.comparisons if item.key == (dataset.label, dataset.preset)]

    def few_labels_of(self, dataset: Dataset) -> list[FewLabels]:
        """Return the results with few labels on one dataset and preset."""
        return [item for item in self.few_labels if item.key == dataset.key]

    def shifts_of(self, dataset: Dataset) -> list[Shift]:
        """Return the shifts between the parts of one dataset and preset."""
        return [item for item in self.shifts if item.key == dataset.key]

    def attribute_aucs_of(self, dataset: Dataset) -> list[AttributeAuc]:
        """Return the AUCs of single attributes on one dataset and preset."""
        return [item for item in self.attribute_aucs if item.key == dataset.key]


def write_results(run: Path, results: Results) -> None:
    """Write `run/results.json` atomically."""
    write_atomic(run / RESULTS_NAME, encode_json(results))


def read_results(run: Path) -> Results | None:
    """Read `run/results.json`.

    Returns:
        The results, None if the run has not been probed.

    Raises:
        UserError: if the file is unreadable, or of a version before 2 or after this one.
    """
    path = run / RESULTS_NAME
    try:
        version = read_json(path, _Version).version
        if version not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            raise UserError(f"{path} has version {version}, this Sternum reads {readable}; probe the run again")
        return read_json(path, Results)
    except FileNotFoundError:
        return None
    except BadJson as error:
        raise UserError(f"{path} cannot be read: {error}; probe the run again") from error


@dataclass(frozen=True)
class _Version:
    version: int
