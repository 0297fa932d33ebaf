"""How well single attributes, such as the age or the width of the source, tell the classes of a task apart."""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.data.attributes import image_attributes, metadata_attributes
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.rows import AttributeAuc
from evaluation.scoring.scores import Predictions, auc, score
from infra.arrays import Float64


def attribute_aucs(cases: Sequence[ProbeCase], *, resamples: int, seed: int) -> list[AttributeAuc]:
    """Score each attribute that varies over a task, for the tasks whose raw pixels are among the cases.

    Args:
        cases: all cases of the probe
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    aucs = []
    for case in cases:
        if case.kind == "pixels":
            for name, values in _varying_attributes(case):
                predictions = _rank(case.task, values)
                if not np.isnan(auc(predictions)):
                    estimate = score(predictions, resamples=resamples, seed=seed).auc
                    images = len(predictions.classes)
                    aucs.append(AttributeAuc(case.key.dataset, case.key.preset, name, images, estimate))
    return aucs


def _varying_attributes(case: ProbeCase) -> Iterator[tuple[str, Float64]]:
    """Yield the attributes that vary over the task; of two categories only the first, which the second mirrors."""
    samples = case.task.labeled_set.samples
    previous = np.full(len(samples.ids), np.nan)
    for name, values in {**metadata_attributes(samples), **image_attributes(samples, case.matrix)}.items():
        of_task = values[case.rows]
        if len(np.unique(of_task[np.isfinite(of_task)])) > 1 and not np.array_equal(values, 1 - previous):
            yield name, values
        previous = values


def _rank(task: ProbeTask, values: Float64) -> Predictions:
    """Rank the test images of every round whose value (N,) is known, in the direction that development images show."""
    cohort = task.cohort
    of_task = values[cohort.rows]
    known = np.isfinite(of_task)
    rounds, rows, ranked = [], [], []
    for number, fold in enumerate(cohort.folds):
        develop, test = known & (fold >= 0), np.flatnonzero(known & (fold == -1))
        both = len(np.unique(cohort.classes[develop])) == 2
        rising = not both or roc_auc_score(cohort.classes[develop], of_task[develop]) >= 0.5
        rounds.append(np.full(len(test), number))
        rows.append(test)
        ranked.append(of_task[test] if rising else -of_task[test])
    tested, scores = np.concatenate(rows), np.concatenate(ranked)
    return Predictions(cohort.classes[tested], scores, scores > 0, cohort.patients[tested], np.concatenate(rounds))
