"""A table like the paper's Table III for a task with several labels: each label and the means, one row for each run."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from evaluation.report.score_table import with_interval
from evaluation.report.tables import Table, marked_label, percent
from evaluation.results.notes import NO_RUN_NOTE
from evaluation.results.results import Results
from evaluation.results.task_scores import TaskScores
from infra.words import counted

HEADER: Final = (
    *("label", "features", "fraction", "seed"),
    *("AUC", "95 %", "AP", "95 %", "ACC", "SEN", "SPE", "F1"),
)


class _Run(NamedTuple):
    """A run with its scores of the task."""

    results: Results
    task: TaskScores


def task_runs_tables(results: Sequence[Results], preset: str) -> dict[str, Table]:
    """Return a table for each task with several labels that any run was probed on, by the label of the task.

    Args:
        results: the records of probed runs
        preset: name of the preset
    """
    by_task: dict[str, list[_Run]] = {}
    for of_run in results:
        for task in of_run.tasks:
            if task.preset == preset:
                by_task.setdefault(task.label, []).append(_Run(of_run, task))
    return {label: _table(runs, preset) for label, runs in by_task.items()}


def _table(runs: Sequence[_Run], preset: str) -> Table:
    labels = dict.fromkeys(label for run in runs for label in run.task.labels)
    cells = [cells for label in labels for run in runs for cells in _label_rows(run, label)]
    cells += [cells for run in runs for cells in _mean_rows(run)]
    return Table(
        f"{runs[0].task.label}: scores of the last checkpoint, or of each backbone, for each label, in percent, by the "
        f"preset {preset}. "
        "Fraction: of the pretraining set. AP: average precision, whose chance level is the share of positives.",
        HEADER,
        cells,
        text_columns=4,
        notes=list(dict.fromkeys(note for run in runs for note in _notes(run))),
    )


def _names(run: _Run, label: str, features: str) -> tuple[str, ...]:
    described = run.results.run
    shown = (f"{described.fraction_percent} %", str(described.seed)) if described else ("", "")
    return (label, features, *shown)


def _label_rows(run: _Run, label: str) -> Iterator[tuple[str, ...]]:
    for name, dataset in zip(run.task.labels, run.results.questions_of(run.task), strict=True):
        for row in run.results.judged_rows(dataset) if name == label else []:
            scores = row.scores
            decisions = (scores.acc, scores.sen, scores.spe, scores.f1)
            yield (
                *_names(run, label, row.features),
                *with_interval(scores.auc),
                *with_interval(scores.ap),
                *(percent(score.value) for score in decisions),
            )


def _mean_rows(run: _Run) -> Iterator[tuple[str, ...]]:
    for row in run.results.judged_means(run.task):
        names = _names(run, f"mean of {len(run.task.labels)}", row.features)
        balanced = "" if row.balanced_accuracy is None else percent(row.balanced_accuracy.value)
        yield (*names, *with_interval(row.auc), *with_interval(row.ap), balanced, "", "", "")


def _notes(run: _Run) -> Iterator[str]:
    described = run.results.run
    what = (
        f"{marked_label(run.task)}, {described.fraction_percent} %, seed {described.seed}: {described.backbone} at "
        f"{described.sizes}, {counted(described.epochs, 'epoch')}"
        if described
        else f"{run.task.label}, {', '.join(backbone.name for backbone in run.results.outside)}: without a run"
    )
    yield f"{what}; {run.task.split} split, {run.task.images} test images of {run.task.patients} patients."
    if described is None:
        yield NO_RUN_NOTE
    for label, reason in run.task.left_out.items():
        yield f"{label} is not scored and not in the mean: the dataset {reason}."
    if run.task.kind == "multiclass":
        yield "ACC of the mean is the balanced accuracy of the class with the highest probability."
