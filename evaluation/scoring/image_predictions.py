"""Predictions for single images from fitted probes, as `predictions.csv` lists them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from evaluation.fitting.draws import grouped_by_row, row_name
from evaluation.fitting.finetuning.tasks import FinetunedLabel
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.predictions import FeaturesKey, ImagePredictions
from evaluation.scoring.probe_results import finetuned_name, predict, thresholds
from infra.arrays import Float64, UInt64


def image_predictions(
    cases: Sequence[ProbeCase], fitted: FittedCases, finetuned: Mapping[ProbeCase, FinetunedLabel]
) -> Iterator[tuple[FeaturesKey, ImagePredictions]]:
    """Yield the predictions of each row that scores the classes of its task.

    Controls that deal other classes to the images, or tell other images apart, say nothing about an image.

    Args:
        cases: the probe cases, in the order of the rows
        fitted: the fitted probes of each case
        finetuned: what fine-tuned networks say, by the case of the backbone that they started from
    """
    for row in grouped_by_row([case for case in cases if _scores_its_task(case)]):
        for draw, case in enumerate(row, start=1):
            predictions = predict(case, fitted[case])
            chosen = np.array(thresholds(case, fitted[case]))[predictions.parts]
            yield _key(case, row_name(case), draw), _of_images(case, predictions.probabilities, chosen)
    for case, label in finetuned.items():
        chosen = np.full(len(label.test), label.threshold)
        yield _key(case, finetuned_name(case), 1), _of_images(case, label.test, chosen)


def _key(case: ProbeCase, features: str, draw: int) -> FeaturesKey:
    return FeaturesKey(case.key, case.task.record.question, features, draw)


def _scores_its_task(case: ProbeCase) -> bool:
    cohort = case.task.cohort
    return np.array_equal(case.rows, cohort.rows) and bool((case.classes == cohort.classes).all())


def _of_images(case: ProbeCase, scores: Float64, chosen: Float64) -> ImagePredictions:
    """Add to scores and thresholds (m,) of the test images, round after round, what is known of these images."""
    samples = case.task.labeled_set.samples
    rounds, positions = np.nonzero(case.folds == -1)
    rows = case.rows[positions]
    return ImagePredictions(
        crossed=len(case.folds) > 1,
        folds=rounds + 1,
        keys=[samples.keys[row] for row in rows.tolist()],
        patients=samples.patient_ids[rows],
        groups=_groups(case)[positions],
        labels=case.classes[rounds, positions],
        scores=scores,
        thresholds=chosen,
    )


def _groups(case: ProbeCase) -> UInt64:
    """Return (n,) the lowest identity of the patients that are resampled together."""
    codes, group = np.unique(case.patients, return_inverse=True)
    lowest = np.full(len(codes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, group, case.task.labeled_set.samples.patient_ids[case.rows])
    return lowest[group]
