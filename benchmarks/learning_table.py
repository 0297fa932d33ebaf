"""The table of `benchmarks.learning`: every recipe that was tried, with its seeds, also those that did not help."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tabulate import tabulate

from benchmarks.learning_probe import Task
from benchmarks.learning_recipes import UNTRAINED
from benchmarks.learning_results import Run
from evaluation.results.scores import Difference, Estimate
from evaluation.scoring.multiplicity import holm
from evaluation.scoring.recipes import recipe_auc, recipe_difference
from evaluation.scoring.scores import auc
from infra.storage.files import write_atomic

_RESAMPLES: Final = 1000


class Setting(NamedTuple):
    """Runs of the same setting are compared.

    Attributes:
        size_px: width and height of a view in training
        epochs: 0 for controls, which have no length
        probe_px: width and height of the probe's images
    """

    size_px: int
    epochs: int
    probe_px: int


@dataclass(frozen=True)
class Cell:
    """A recipe on a task.

    Attributes:
        auc: mean over the seeds, with its interval over seeds and patients
        sd: standard deviation over the seeds; None for one seed
        knn_auc: mean over the seeds
        difference: to the baseline of the same setting, paired by patient; None for the baseline itself
        p_holm: of the difference, within the task and setting
    """

    auc: Estimate
    sd: float | None
    knn_auc: float
    difference: Difference | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Row:
    """A recipe with all of its seeds in one setting.

    Attributes:
        recipe: its name
        setting: sizes of the views and of the probe's images, and length
        seeds: of its runs
        cpu_ms_per_image: mean over the runs
        cells: by the name of the task
    """

    recipe: str
    setting: Setting
    seeds: list[int]
    cpu_ms_per_image: float
    cells: dict[str, Cell] = field(default_factory=dict)


def rows(runs: Sequence[Run], tasks: Mapping[str, Task], baseline: str) -> list[Row]:
    """Return a row for each recipe and setting, the best on the first task first within a setting."""
    groups = defaultdict[tuple[Setting, str], list[Run]](list)
    for run in runs:
        epochs = 0 if run.recipe in UNTRAINED else run.facts["epochs"]
        groups[Setting(run.facts["size_px"], epochs, run.facts["probe_px"]), run.recipe].append(run)
    found = []
    for (setting, recipe), group in groups.items():
        base = [] if recipe == baseline else groups.get((_setting_of_baseline(groups, setting, baseline), baseline), [])
        cells = {name: _cell(task, group, base) for name, task in tasks.items()}
        cpu_ms = float(np.mean([run.facts["cpu_ms_per_image"] for run in group]))
        found.append(Row(recipe, setting, sorted(run.facts["seed"] for run in group), cpu_ms, cells))
    first = next(iter(tasks))
    return sorted(_with_holm(found), key=lambda row: (*row.setting, -row.cells[first].auc.value))


def _setting_of_baseline(groups: Mapping[tuple[Setting, str], Any], setting: Setting, baseline: str) -> Setting:
    """Return the setting itself; for a control the shortest one of the baseline at its sizes."""
    if setting.epochs:
        return setting
    settings = [setting._replace(epochs=of.epochs) for of, recipe in groups if recipe == baseline]
    return min((of for of in settings if (of, baseline) in groups), default=setting)


def _cell(task: Task, runs: Sequence[Run], baseline: Sequence[Run]) -> Cell:
    predictions = [task.predictions(run.scores[task.name]) for run in runs]
    aucs = [auc(run) for run in predictions]
    options = {"resamples": _RESAMPLES, "seed": 0}
    difference = None
    if baseline:
        base = [task.predictions(run.scores[task.name]) for run in baseline]
        difference = recipe_difference(predictions, base, **options)
    return Cell(
        recipe_auc(predictions, **options),
        float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None,
        float(np.mean([run.facts["tasks"][task.name]["knn_auc"] for run in runs])),
        difference,
    )


def _with_holm(found: Sequence[Row]) -> list[Row]:
    """Return the rows with p-values adjusted for all recipes that are compared on a task in a setting."""
    families = defaultdict[tuple[Setting, str], list[Cell]](list)
    for row in found:
        for name, cell in row.cells.items():
            if cell.difference is not None and cell.difference.p is not None:
                families[row.setting, name].append(cell)
    adjusted = dict[int, float]()
    for cells in families.values():
        values = [cell.difference.p for cell in cells if cell.difference and cell.difference.p is not None]
        adjusted |= dict(zip(map(id, cells), holm(values), strict=True))
    return [
        replace(row, cells={name: replace(cell, p_holm=adjusted.get(id(cell))) for name, cell in row.cells.items()})
        for row in found
    ]


def markdown(found: Sequence[Row], tasks: Sequence[str]) -> str:
    """Return one table for each setting: AUC and SD over seeds, and the difference to the baseline, in points."""
    parts = []
    header = ["recipe", "seeds", "CPU ms an image", *(head for name in tasks for head in (name, "difference"))]
    for setting in dict.fromkeys(row.setting for row in found):
        lines = [
            [row.recipe, str(len(row.seeds)), f"{row.cpu_ms_per_image:.1f}" if row.cpu_ms_per_image else ""]
            + [text for name in tasks for text in _texts(row.cells[name])]
            for row in found
            if row.setting == setting
        ]
        length = f"{setting.epochs} epochs" if setting.epochs else "no training"
        table = tabulate(lines, header, tablefmt="pipe", disable_numparse=True)
        parts.append(f"{setting.size_px} px, {length}, probed at {setting.probe_px} px\n\n{table}\n")
    return "\n".join(parts)


def _texts(cell: Cell) -> tuple[str, str]:
    value = f"{100 * cell.auc.value:.2f}" + ("" if cell.sd is None else f" ± {100 * cell.sd:.2f}")
    item = cell.difference
    if item is None or item.low is None or item.high is None:
        return value, ""
    return value, f"{100 * item.value:+.2f} ({100 * item.low:+.2f} to {100 * item.high:+.2f})"


def write_table(results: Path, found: Sequence[Row], tasks: Sequence[str]) -> None:
    """Write table.md and table.json."""
    write_atomic(results / "table.md", markdown(found, tasks))
    write_atomic(results / "table.json", json.dumps([asdict(row) for row in found], indent=1) + "\n")
