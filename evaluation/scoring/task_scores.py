"""Scores of a whole task: means over its labels, and of classes against each other, with intervals over patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.scoring.intervals import Evidence
from evaluation.scoring.scores import Predictions, auc_evidence, image_weights, weighted_scores
from infra.arrays import Bool, Float64, Int64

MEANS: Final = ("auc", "ap")  # fields of Scores that are averaged over labels

ResampledMeans = Mapping[str, Float64]  # score -> (B,) its value in each resample


@dataclass(frozen=True)
class TaskPredictions:
    """The predictions of one feature set for all labels of a task.

    Attributes:
        labels: of each label, the predictions for its test images; labels may differ in their images
        exclusive: whether the labels are classes of the same images that exclude each other
    """

    labels: Sequence[Predictions]
    exclusive: bool

    @property
    def patients(self) -> Int64:
        """(P,) the codes of the tested patients, each once."""
        return np.unique(np.concatenate([predictions.patients for predictions in self.labels]))

    @property
    def evidence(self) -> Evidence:
        """What a mean rests on: as many patients as the label with the fewest in its smaller class."""
        return min((auc_evidence(predictions) for predictions in self.labels), key=lambda item: item.patients)


def mean_scores(task: TaskPredictions) -> dict[str, float]:
    """Return the mean of each score over the labels, and of classes also the balanced accuracy."""
    whole = weighted_means(task, np.ones((1, len(task.patients))))
    return {name: float(value) for name, [value] in whole.items()}


def resampled_means(task: TaskPredictions, *, resamples: int, seed: int) -> ResampledMeans:
    """Return the scores of `mean_scores` in each resample of the patients.

    A resample draws patients of the whole task, so that all labels are scored on the same patients. A mean is NaN in a
    resample that lacks a class of a label. The draws depend only on the seed and the patients, so that feature sets
    can be compared resample by resample.
    """
    patients = task.patients
    chunks = [weighted_means(task, weights) for weights in image_weights(patients, resamples=resamples, seed=seed)]
    names = chunks[0] if chunks else mean_scores(task)
    return {name: np.concatenate([np.empty(0), *(chunk[name] for chunk in chunks)]) for name in names}


def weighted_means(task: TaskPredictions, weights: Float64) -> dict[str, Float64]:
    """Return the scores of `mean_scores` under each row of weights (B, P) of the patients: (B,)."""
    patients = task.patients
    by_label = [
        weighted_scores(predictions, weights[:, np.searchsorted(patients, predictions.patients)])
        for predictions in task.labels
    ]
    means = {name: np.mean([scores[name] for scores in by_label], axis=0) for name in MEANS}
    if task.exclusive:
        means["balanced_accuracy"] = _balanced_accuracy(task, weights)
    return means


def confusion(task: TaskPredictions) -> list[list[int]]:
    """Return how many images of each class (rows) are assigned to each class (columns)."""
    true, assigned, _ = _assigned(task)
    count = len(task.labels)
    return np.bincount(true * count + assigned, minlength=count**2).reshape(count, count).tolist()


def _balanced_accuracy(task: TaskPredictions, weights: Float64) -> Float64:
    """Return the mean over the classes of the share of images that are assigned to their class: (B,)."""
    true, assigned, patients = _assigned(task)
    of_image = weights[:, np.searchsorted(task.patients, patients)]
    recalls = []
    for code in range(len(task.labels)):
        of_class = of_image[:, true == code]
        with np.errstate(invalid="ignore"):  # NaN in a resample without the class
            recalls.append(of_class[:, (assigned == code)[true == code]].sum(axis=1) / of_class.sum(axis=1))
    return np.mean(recalls, axis=0)


def _assigned(task: TaskPredictions) -> tuple[Int64, Int64, Int64]:
    """Return (m,) the class, the class of the highest probability, and the patient of each image of a scored class."""
    classes = np.stack([predictions.classes for predictions in task.labels])
    probabilities = np.stack([predictions.probabilities for predictions in task.labels])
    scored: Bool = (classes == 1).any(axis=0)
    return classes.argmax(axis=0)[scored], probabilities.argmax(axis=0)[scored], task.labels[0].patients[scored]
