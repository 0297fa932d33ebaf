"""Results of tasks with several labels, from the fitted probes of each label."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.data.probe_tasks import DividedTask
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.results import Comparison, Estimate, TaskResult, TaskRow
from evaluation.scoring.probe_results import predict
from evaluation.scoring.scores import estimate, estimate_difference
from evaluation.scoring.task_scores import ResampledMeans, TaskPredictions, confusion, mean_scores, resampled_means


def task_results(
    tasks: Sequence[DividedTask], cases: Sequence[ProbeCase], fitted: FittedCases, *, resamples: int, seed: int
) -> list[TaskResult]:
    """Score each task with several labels over all of them.

    Args:
        tasks: all tasks; those with one question are scored by its rows alone
        cases: the cases of all questions
        fitted: their fitted probes
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    return [
        _task_result(task, _by_features(task, cases), fitted, resamples, seed)
        for task in tasks
        if task.task.kind != "binary"
    ]


def _by_features(task: DividedTask, cases: Sequence[ProbeCase]) -> list[list[ProbeCase]]:
    """Return, for each feature set, its cases of all questions of a task, in their order."""
    by_name: dict[str, list[ProbeCase]] = {}
    for question in task.questions:
        for case in cases:
            if case.task is question and case.kind != "source":
                by_name.setdefault(case.name, []).append(case)
    # A control that exists for some questions only has no mean.
    return [of_name for of_name in by_name.values() if len(of_name) == len(task.questions)]


def _task_result(
    task: DividedTask, by_features: Sequence[Sequence[ProbeCase]], fitted: FittedCases, resamples: int, seed: int
) -> TaskResult:
    rows: dict[ProbeCase, TaskRow] = {}
    resampled: dict[ProbeCase, ResampledMeans] = {}
    for of_features in by_features:
        first = of_features[0]
        predictions = TaskPredictions([predict(case, fitted[case]) for case in of_features], _is_exclusive(task))
        resampled[first] = resampled_means(predictions, resamples=resamples, seed=seed)
        rows[first] = _row(first, predictions, resampled[first])
    tested = [question.cohort.rows[question.cohort.in_test.any(axis=0)] for question in task.questions]
    samples = task.questions[0].labeled_set.samples
    images = np.unique(np.concatenate(tested))
    return TaskResult(
        label=task.key.dataset,
        preset=task.key.preset,
        kind=task.task.kind,
        labels=[question.cohort.question.positive for question in task.questions],
        datasets=[question.key.dataset for question in task.questions],
        left_out=task.left_out,
        images=len(images),
        patients=len(np.unique(samples.patient_ids[images])),
        rows=list(rows.values()),
        comparisons=_comparisons(task, rows, resampled),
    )


def _is_exclusive(task: DividedTask) -> bool:
    return task.task.kind == "multiclass"


def _row(case: ProbeCase, predictions: TaskPredictions, resampled: ResampledMeans) -> TaskRow:
    values = mean_scores(predictions)
    patients = len(predictions.patients)
    estimates = {name: estimate(value, resampled[name], patients) for name, value in values.items()}
    return TaskRow(
        features=case.name,
        kind=case.kind,
        epoch=case.epoch,
        step=case.step,
        auc=estimates["auc"],
        ap=estimates["ap"],
        balanced_accuracy=estimates.get("balanced_accuracy"),
        confusion=confusion(predictions) if predictions.exclusive else None,
    )


def _comparisons(
    task: DividedTask, rows: Mapping[ProbeCase, TaskRow], resampled: Mapping[ProbeCase, ResampledMeans]
) -> list[Comparison]:
    """Compare the mean AUC of the last checkpoint with that of all other features, on the same resamples."""
    trained = [case for case in rows if case.kind == "checkpoint"]
    if not trained:
        return []
    last = max(trained, key=lambda case: case.step or 0)
    return [
        Comparison(task.key.dataset, task.key.preset, last.name, case.name, _difference(last, case, rows, resampled))
        for case in rows
        if case is not last and case.kind != "shuffled"
    ]


def _difference(
    last: ProbeCase, other: ProbeCase, rows: Mapping[ProbeCase, TaskRow], resampled: Mapping[ProbeCase, ResampledMeans]
) -> Estimate:
    return estimate_difference(
        rows[last].auc.value - rows[other].auc.value, resampled[last]["auc"] - resampled[other]["auc"]
    )
