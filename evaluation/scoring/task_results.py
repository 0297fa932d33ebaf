"""Scores of tasks with several labels, from the fitted probes of each label."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.data.probe_tasks import DividedTask
from evaluation.fitting.draws import grouped_by_row, pooled, row_name
from evaluation.fitting.finetuning.tasks import FinetunedLabel
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.rows import Comparison
from evaluation.results.scores import Difference
from evaluation.results.task_scores import MeanRow, TaskScores
from evaluation.scoring.intervals import estimate, estimate_difference
from evaluation.scoring.probe_results import adjusted, finetuned_name, predict, predict_finetuned
from evaluation.scoring.task_scores import ResampledMeans, TaskPredictions, confusion, mean_scores, resampled_means


@dataclass(frozen=True)
class _Scored:
    """The mean scores of one feature set, and what its comparisons need."""

    row: MeanRow
    predictions: TaskPredictions
    resampled: ResampledMeans


def task_scores(
    tasks: Sequence[DividedTask],
    cases: Sequence[ProbeCase],
    fitted: FittedCases,
    finetuned: Mapping[ProbeCase, FinetunedLabel],
    *,
    resamples: int,
    seed: int,
) -> tuple[list[TaskScores], list[Comparison]]:
    """Score each task with several labels over all of them.

    Args:
        tasks: all tasks; those with one question are scored by its rows alone
        cases: the cases of all questions
        fitted: their fitted probes
        finetuned: what fine-tuned networks say, by the case of the backbone that they started from
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples

    Returns:
        The scores, and the mean AUC of each task's last checkpoint minus that of other features.
    """
    scores, comparisons = [], []
    for task in tasks:
        if task.task.kind != "binary":
            scored = [_scored(item, resamples, seed) for item in _features(task, cases, fitted, finetuned)]
            scores.append(_record(task, [item.row for item in scored]))
            comparisons += _comparisons(task, scored)
    return scores, adjusted(comparisons)


@dataclass(frozen=True)
class _Features:
    """The predictions of one feature set for all labels of a task, and the fields that name it in a row."""

    features: str
    kind: str
    step: int | None
    predictions: TaskPredictions


def _features(
    task: DividedTask,
    cases: Sequence[ProbeCase],
    fitted: FittedCases,
    finetuned: Mapping[ProbeCase, FinetunedLabel],
) -> Iterator[_Features]:
    """Yield the feature sets that all questions of a task have, and then the network that was fine-tuned on it."""
    exclusive = task.task.kind == "multiclass"
    for rows in _by_name(task, cases):
        by_label = [predict(pooled(row), [probe for case in row for probe in fitted[case]]) for row in rows]
        first = rows[0][0]
        yield _Features(row_name(first), first.kind, first.step, TaskPredictions(by_label, exclusive))
    tuned = [case for question in task.questions for case in finetuned if case.task is question]
    if tuned:
        by_label = [predict_finetuned(case, finetuned[case]) for case in tuned]
        predictions = TaskPredictions(by_label, exclusive)
        yield _Features(finetuned_name(tuned[0]), "finetuned", tuned[0].step, predictions)


_Row = list[ProbeCase]  # the case of a row, or one for each draw of the untrained backbone


def _by_name(task: DividedTask, cases: Sequence[ProbeCase]) -> list[list[_Row]]:
    """Return, for each feature set that all questions of a task have, its rows in the order of the questions."""
    by_name: dict[str, list[_Row]] = {}
    for question in task.questions:
        for row in grouped_by_row([case for case in cases if case.task is question and case.kind != "source"]):
            by_name.setdefault(row_name(row[0]), []).append(row)
    return [of_name for of_name in by_name.values() if len(of_name) == len(task.questions)]


def _scored(item: _Features, resamples: int, seed: int) -> _Scored:
    predictions = item.predictions
    resampled = resampled_means(predictions, resamples=resamples, seed=seed)
    estimates = {
        name: estimate(value, resampled[name], predictions.evidence) for name, value in mean_scores(predictions).items()
    }
    row = MeanRow(
        features=item.features,
        kind=item.kind,
        step=item.step,
        auc=estimates["auc"],
        ap=estimates["ap"],
        balanced_accuracy=estimates.get("balanced_accuracy"),
        confusion=confusion(predictions) if predictions.exclusive else None,
    )
    return _Scored(row, predictions, resampled)


def _record(task: DividedTask, rows: list[MeanRow]) -> TaskScores:
    first = task.questions[0]
    tested = [question.cohort.rows[question.cohort.in_test.any(axis=0)] for question in task.questions]
    images = np.unique(np.concatenate(tested))
    return TaskScores(
        label=task.key.dataset,
        preset=task.key.preset,
        kind=task.task.kind,
        labels=[question.cohort.question.positive for question in task.questions],
        datasets=[question.key.dataset for question in task.questions],
        left_out=task.left_out,
        split=first.cohort.split,
        images=len(images),
        patients=len(np.unique(first.labeled_set.samples.patient_ids[images])),
        overlaps=any(question.record.overlaps for question in task.questions),
        rows=rows,
        overlap=task.overlap,
    )


def _comparisons(task: DividedTask, scored: Sequence[_Scored]) -> list[Comparison]:
    """Compare the mean AUC of the last checkpoint with that of all other features, on the same resamples."""
    last = max(
        (item for item in scored if item.row.kind == "checkpoint"), key=lambda item: item.row.step or 0, default=None
    )
    return [
        Comparison(*task.key, last.row.features, other.row.features, _difference(last, other))
        for other in scored
        if last is not None and other is not last and not other.row.kind.startswith("shuffled")
    ]


def _difference(first: _Scored, second: _Scored) -> Difference:
    differences = first.resampled["auc"] - second.resampled["auc"]
    return estimate_difference(first.row.auc, second.row.auc, differences, first.predictions.evidence)
