"""The table of `benchmarks.learning`: everything that was tried, with its seeds, also those that did not help."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tabulate import tabulate

from benchmarks.learning_probe import Task
from benchmarks.learning_results import Run, read_runs, read_tasks
from evaluation.results.scores import Difference, Estimate
from evaluation.scoring.multiplicity import holm
from evaluation.scoring.recipes import recipe_auc, recipe_difference
from evaluation.scoring.scores import auc, auc_difference
from infra.errors import require
from infra.storage.files import write_atomic

_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Cell:
    """A training on a task.

    Attributes:
        auc: mean over the seeds, with its interval over seeds and patients
        sd: standard deviation over the seeds; None for one seed
        knn_auc: mean over the seeds
        difference: to the baseline, probed at the same size and paired by patient; None for the baseline itself
        p_holm: of the difference, within the task and the size of the probe's images
    """

    auc: Estimate
    sd: float | None
    knn_auc: float
    difference: Difference | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Row:
    """A training with all of its seeds, probed at one size.

    Attributes:
        training: recipe, size of a view and length
        probe_px: width and height of the probe's images
        seeds: of its runs
        cpu_ms_per_image: mean over the runs; 0 for controls
        cpu_minutes: of a whole training, likewise
        cells: by the name of the task
    """

    training: str
    probe_px: int
    seeds: list[int]
    cpu_ms_per_image: float
    cpu_minutes: float
    cells: dict[str, Cell] = field(default_factory=dict)


class LargerImages(NamedTuple):
    """The same weights probed at two sizes.

    Attributes:
        weights: training and seed
        from_px: width and height of the smaller images
        to_px: of the larger ones
        differences: AUC on the larger minus AUC on the smaller images by the name of the task, paired by patient
    """

    weights: str
    from_px: int
    to_px: int
    differences: dict[str, Difference]


def rows(runs: Sequence[Run], tasks: Mapping[str, Task], baseline: str) -> list[Row]:
    """Return a row for each training and size of the probe's images; of each size the best on the first task first.

    Args:
        runs: finished runs
        tasks: those on which they were judged
        baseline: the training that the others are compared with

    Raises:
        UserError: if there is no such training
    """
    groups = defaultdict[tuple[int, str], list[Run]](list)
    for run in runs:
        groups[run.facts["probe_px"], run.training].append(run)
    names = sorted({training for _, training in groups})
    require(baseline in names, f"baseline={baseline} is none of the trainings; use one of {', '.join(names)}")
    found = []
    for (probe_px, training), group in groups.items():
        base = [] if training == baseline else groups.get((probe_px, baseline), [])
        cells = {name: _cell(task, group, base) for name, task in tasks.items()}
        cpu_ms = float(np.mean([run.facts["cpu_ms_per_image"] for run in group]))
        cpu_minutes = cpu_ms * group[0].facts["samples"] / 60_000
        found.append(Row(training, probe_px, sorted(run.facts["seed"] for run in group), cpu_ms, cpu_minutes, cells))
    first = next(iter(tasks))
    return sorted(_with_holm(found), key=lambda row: (row.probe_px, -row.cells[first].auc.value))


def larger_images(runs: Sequence[Run], tasks: Mapping[str, Task]) -> list[LargerImages]:
    """Return what the probe gains by larger images, for all weights that were probed at several sizes."""
    weights = defaultdict[str, list[Run]](list)
    for run in sorted(runs, key=lambda run: int(run.facts["probe_px"])):
        weights[f"{run.training}-seed{run.facts['seed']}"].append(run)
    found = []
    for name, (smallest, *others) in weights.items():
        for run in others:
            differences = {
                task: auc_difference(
                    *(of.predictions(judged.scores[task]) for judged in (run, smallest)), resamples=_RESAMPLES, seed=0
                )
                for task, of in tasks.items()
            }
            found.append(LargerImages(name, smallest.facts["probe_px"], run.facts["probe_px"], differences))
    return found


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
    """Return the rows with p-values adjusted for all that are compared on a task with probe images of one size."""
    families = defaultdict[tuple[int, str], list[Cell]](list)
    for row in found:
        for name, cell in row.cells.items():
            if cell.difference is not None and cell.difference.p is not None:
                families[row.probe_px, name].append(cell)
    adjusted = dict[int, float]()
    for cells in families.values():
        values = [cell.difference.p for cell in cells if cell.difference and cell.difference.p is not None]
        adjusted |= dict(zip(map(id, cells), holm(values), strict=True))
    return [
        replace(row, cells={name: replace(cell, p_holm=adjusted.get(id(cell))) for name, cell in row.cells.items()})
        for row in found
    ]


def markdown(found: Sequence[Row], tasks: Sequence[str]) -> str:
    """Return a table for each size of the probe's images: AUC, SD over seeds, difference to the baseline, kNN."""
    parts = []
    costs = ["CPU ms an image", "CPU minutes"]
    header = ["training", "seeds", *costs, *(head for name in tasks for head in (name, "difference", "kNN"))]
    for probe_px in dict.fromkeys(row.probe_px for row in found):
        lines = [
            [row.training, str(len(row.seeds))]
            + ([f"{row.cpu_ms_per_image:.1f}", f"{row.cpu_minutes:.0f}"] if row.cpu_minutes else ["", ""])
            + [text for name in tasks for text in _texts(row.cells[name])]
            for row in found
            if row.probe_px == probe_px
        ]
        table = tabulate(lines, header, tablefmt="pipe", disable_numparse=True)
        parts.append(f"Probed at {probe_px} px\n\n{table}\n")
    return "\n".join(parts)


def markdown_of_sizes(found: Sequence[LargerImages], tasks: Sequence[str]) -> str:
    """Return a table of what larger images in the probe change."""
    lines = [
        [
            item.weights,
            f"{item.from_px} to {item.to_px} px",
            *(_of_difference(item.differences[name]) for name in tasks),
        ]
        for item in found
    ]
    table = tabulate(lines, ["weights", "probed at", *tasks], tablefmt="pipe", disable_numparse=True)
    return f"The same weights on larger images, points of AUC\n\n{table}\n"


def _texts(cell: Cell) -> tuple[str, str, str]:
    value = f"{100 * cell.auc.value:.2f}" + ("" if cell.sd is None else f" ± {100 * cell.sd:.2f}")
    return value, _of_difference(cell.difference), f"{100 * cell.knn_auc:.2f}"


def _of_difference(item: Difference | None) -> str:
    if item is None or item.low is None or item.high is None:
        return ""
    return f"{100 * item.value:+.2f} ({100 * item.low:+.2f} to {100 * item.high:+.2f})"


def write_table(results: Path, baselines: Sequence[str]) -> str:
    """Write table.md and table.json of all runs in a folder, with differences to each baseline; return the former."""
    tasks, runs = read_tasks(results), read_runs(results)
    found = {baseline: rows(runs, tasks, baseline) for baseline in baselines}
    sizes = larger_images(runs, tasks)
    parts = [f"Differences to {baseline}\n\n{markdown(table, list(tasks))}" for baseline, table in found.items()]
    text = "\n".join([*parts, *([markdown_of_sizes(sizes, list(tasks))] if sizes else [])])
    content = {
        "differences_to": {baseline: [asdict(row) for row in table] for baseline, table in found.items()},
        "larger_images": [item._asdict() | {"differences": _as_dicts(item.differences)} for item in sizes],
    }
    write_atomic(results / "table.md", text)
    write_atomic(results / "table.json", json.dumps(content, indent=1) + "\n")
    return text


def _as_dicts(differences: Mapping[str, Difference]) -> dict[str, dict[str, object]]:
    return {name: asdict(difference) for name, difference in differences.items()}
