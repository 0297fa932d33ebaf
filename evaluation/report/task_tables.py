"""Tables of tasks with several labels: each label beside the means, and what all labels have, joined."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from evaluation.report.detail_tables import calibration_table, comparison_table, few_labels_table, subgroup_tables
from evaluation.report.score_table import chosen_c, not_converged, with_interval
from evaluation.report.shift_table import shift_table
from evaluation.report.tables import Table, marked_label, percent
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results
from evaluation.results.rows import last_checkpoint
from evaluation.results.task_scores import MeanRow, TaskScores

_BESIDE: Final = ("finetuned", "untrained", "pixels", "border", "attributes")  # in the table of the labels


def score_tables_of(results: Results, task: TaskScores) -> list[Table]:
    """Return the tables with the scores of each label and of all together."""
    return [label_table(results, task), mean_table(task), *_confusion_tables(task)]


def detail_tables_of(results: Results, task: TaskScores) -> list[Table]:
    """Return the tables of everything beyond the scores that have rows, those of the labels joined."""
    tables = [
        comparison_table(results, task),
        joined(results, task, shift_table),
        joined(results, task, calibration_table),
        *(joined(results, task, partial(subgroup_table, number)) for number in (0, 1)),
        joined(results, task, few_labels_table),
    ]
    return [table for table in tables if table.cells]


def label_table(results: Results, task: TaskScores) -> Table:
    """Return the scores of the last checkpoint for each label, beside the AUCs of other features, and the means."""
    others = [row.features for kind in _BESIDE for row in task.rows if row.kind == kind]
    cells = [_label_cells(results, dataset, name, others) for name, dataset in _named_questions(results, task)]
    means = {row.features: row for row in task.rows}
    if task.last:
        count = len(task.labels)
        cells.append(
            (
                f"mean of {count}",
                "",
                "",
                "",
                *_pair(task.last),
                "",
                *(percent(means[name].auc.value) for name in others),
            )
        )
    features = task.last.features if task.last else "no checkpoint"
    beside = "; the last columns are AUCs of other features" if others else ""
    return Table(
        f"{marked_label(task)}, {task.preset}: scores of each label on the test part in percent, {features}{beside}. "
        "AP: average precision, whose chance level is the share of positives.",
        ("label", "positive", "C", "validation AUC", "AUC", "95 %", "AP", "95 %", "not converged", *others),
        cells,
        text_columns=1,
        notes=[f"{name} is not scored: the dataset {reason}." for name, reason in task.left_out.items()],
    )


def _label_cells(results: Results, dataset: Dataset, name: str, others: Sequence[str]) -> tuple[str, ...]:
    rows = {row.features: row for row in results.rows_of(dataset)}
    last = last_checkpoint(list(rows.values()))
    scores = ("",) * 7
    if last:
        chosen = chosen_c(last), percent(last.validation_auc)
        scores = (*chosen, *with_interval(last.scores.auc), *with_interval(last.scores.ap), not_converged(last))
    positive = f"{dataset.test.positive} of {dataset.test.images}"
    return (name, positive, *scores, *(percent(rows[other].scores.auc.value) for other in others))


def _pair(row: MeanRow) -> tuple[str, ...]:
    return (*with_interval(row.auc), *with_interval(row.ap))


def mean_table(task: TaskScores) -> Table:
    """Return the means over the labels of every feature set."""
    classes = any(row.balanced_accuracy for row in task.rows)
    return Table(
        f"{marked_label(task)}, {task.preset}: means over {len(task.labels)} labels on the test part in percent "
        f"({task.split} split, {task.images} images of {task.patients} patients); all labels of a resample are of the "
        "same patients",
        ("features", "mean AUC", "95 %", "mean AP", "95 %", *(("balanced ACC", "95 %") if classes else ())),
        [(row.features, *_pair(row), *(with_interval(row.balanced_accuracy) if classes else ())) for row in task.rows],
        text_columns=1,
        styles=["trained" if row.kind == "checkpoint" else "plain" for row in task.rows],
    )


def _confusion_tables(task: TaskScores) -> Iterator[Table]:
    if task.last and task.last.confusion:
        yield Table(
            f"{marked_label(task)}, {task.preset}, {task.last.features}: test images of each class (rows), by the "
            "class to which they are assigned, the one with the highest probability (columns)",
            ("class", *task.labels),
            [
                (label, *(str(count) for count in counts))
                for label, counts in zip(task.labels, task.last.confusion, strict=True)
            ],
            text_columns=1,
        )


def parts_table(results: Results, task: TaskScores) -> Table:
    """Return the images, patients and positive images in the parts of each label, and the images left out."""
    return Table(
        f"{task.label}, {task.preset}: parts of each label, {task.split} split",
        ("label", *("development", "patients", "positive"), *("test", "patients", "positive"), "left out"),
        [
            (
                name,
                *(
                    str(count)
                    for part in (dataset.development, dataset.test)
                    for count in (part.images, part.patients, part.positive)
                ),
                ", ".join(f"{count} {reason}" for reason, count in dataset.excluded.items() if count),
            )
            for name, dataset in _named_questions(results, task)
        ],
        text_columns=1,
    )


def _named_questions(results: Results, task: TaskScores) -> list[tuple[str, Dataset]]:
    return list(zip(task.labels, results.questions_of(task), strict=True))


def joined(results: Results, task: TaskScores, table_of: Callable[[Results, Dataset], Table]) -> Table:
    """Return the same table of all labels as one, with the label in front of each row."""
    tables = {name: (dataset, table_of(results, dataset)) for name, dataset in _named_questions(results, task)}
    dataset, first = next(iter(tables.values()))
    return Table(
        first.caption.replace(dataset.label, task.label),
        ("label", *first.header),
        [(name, *cells) for name, (_, table) in tables.items() for cells in table.cells],
        first.text_columns + 1,
        first.notes,
    )


def subgroup_table(number: int, results: Results, dataset: Dataset) -> Table:
    """Return one of the tables of subgroups: 0 for the scores, 1 for the gaps; without rows if there is no score."""
    tables = subgroup_tables(results, dataset)
    return tables[number] if tables else Table("", (), [])
