"""One plain probe for the weights of all recipes: logistic regression and nearest neighbors on frozen features.

Everything is divided by patient. C is the smallest whose mean AUC over the inner folds is within one standard error of
the best. The divisions and draws depend on the images alone, so all recipes share them. Of the scores only the ranks
within each part matter; 256 levels of them are kept, which move no AUC by more than a few hundredths of a point.
"""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.learning_ground import Films
from evaluation.scoring.scores import Predictions
from infra.arrays import Float32, Float64, Int64, UInt8

CS: Final = tuple(10 ** (half / 2) for half in range(-8, 1))  # half decades from 1e-4 to 1
FOLDS: Final = 5
NEIGHBORS: Final = 20
_LEVELS: Final = 256


@dataclass(frozen=True)
class Task:
    """Images with two classes, divided again and again into folds that are each tested once.

    Attributes:
        name: as in the tables
        images: (n,) numbers of the images in their part of the ground
        classes: (n,) 1 or 0
        patients: (n,) codes
        folds: (R, n) the fold of each image in each repeat
        labels_percent: share of the labels of each training part that a classifier is fitted to
    """

    name: str
    images: Int64
    classes: Int64
    patients: Int64
    folds: Int64
    labels_percent: float = 100

    def training(self) -> Iterator[tuple[int, Int64, Int64]]:
        """Yield the repeat, and the places of the images to fit to and to test, of every round."""
        for repeat, folds in enumerate(self.folds):
            for fold in np.unique(folds):
                rest, tested = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
                yield repeat, self._labeled(rest, [repeat, int(fold)]), tested

    def _labeled(self, rest: Int64, seed: list[int]) -> Int64:
        """Return the images of drawn patients, class by class, until each class has its share."""
        if self.labels_percent == 100:
            return rest
        random, chosen = np.random.default_rng([22, int(100 * self.labels_percent), *seed]), list[int]()
        for code in (0, 1):
            of_class = rest[self.classes[rest] == code]
            wanted = max(5, round(len(of_class) * self.labels_percent / 100))
            taken = list[int]()
            for patient in random.permutation(np.unique(self.patients[of_class])):
                taken += of_class[self.patients[of_class] == patient].tolist()
                if len(taken) >= wanted:
                    break
            chosen += taken[:wanted]
        return np.sort(np.array(chosen, np.int64))

    def predictions(self, scores: UInt8) -> Predictions:
        """Return kept scores (R, n) as predictions whose parts are the folds of all repeats."""
        repeats = len(self.folds)
        values = scores.ravel() / _LEVELS
        return Predictions(
            classes=np.tile(self.classes, repeats),
            probabilities=values,
            decisions=values > 0.5,
            patients=np.tile(self.patients, repeats),
            parts=(self.folds + 1000 * np.arange(repeats)[:, None]).ravel(),
        )


def cell_tasks(films: Films) -> list[Task]:
    """Return the tasks inside Cell's development part: all labels, and few of them."""
    images = np.flatnonzero(films.classes >= 0)
    return [
        _task(f"cell {percent:g} %", films, images, repeats, percent) for percent, repeats in ((1, 3), (5, 2), (100, 1))
    ]


def chestxray14_task(films: Films) -> Task:
    """Return pneumonia against no finding, with as many images of either class in each view."""
    random, kept = np.random.default_rng(22), list[int]()
    for view in (0, 1):
        of_class = [np.flatnonzero((films.views == view) & (films.classes == code)) for code in (0, 1)]
        count = min(map(len, of_class))
        kept += [int(image) for images in of_class for image in random.permutation(images)[:count]]
    return _task("chestxray14", films, np.sort(np.array(kept, np.int64)), 2, 100)


def _task(name: str, films: Films, images: Int64, repeats: int, percent: float) -> Task:
    classes, patients = films.classes[images], films.patients[images]
    folds = np.zeros((repeats, len(images)), np.int64)
    for repeat in range(repeats):
        for fold, (_, tested) in enumerate(_grouped_folds(classes, patients, repeat)):
            folds[repeat, tested] = fold
    return Task(name, images, classes, patients, folds, percent)


def _grouped_folds(classes: Int64, patients: Int64, seed: int) -> Iterator[tuple[Int64, Int64]]:
    yield from StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(classes, classes, patients)


def score_task(task: Task, features: Float32) -> tuple[UInt8, dict[str, Any]]:
    """Fit and test the probe in every round.

    Args:
        task: the images and their division
        features: (N, D) of all images of the part

    Returns:
        The kept scores (R, n), and the chosen Cs and the AUC of the nearest neighbors.
    """
    features = features[task.images].astype(np.float64)
    scores, neighbors = np.zeros((2, *task.folds.shape), np.uint8)

    def fit_round(which: tuple[int, Int64, Int64]) -> float:
        repeat, fitted, tested = which
        scaler = StandardScaler().fit(features[fitted])
        train, test = scaler.transform(features[fitted]), scaler.transform(features[tested])
        c, decisions = fit_and_decide(train, task.classes[fitted], task.patients[fitted], test)
        scores[repeat, tested] = levels(decisions)
        neighbors[repeat, tested] = levels(nearest_neighbors(train, task.classes[fitted], test))
        return c

    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
        cs = list(pool.map(fit_round, task.training()))
    return scores, {"cs": [float(f"{c:.3g}") for c in cs], "knn_auc": mean_auc(task, neighbors)}


def mean_auc(task: Task, scores: UInt8) -> float:
    """Return the mean AUC over all rounds."""
    found = [
        roc_auc_score(task.classes[tested], scores[repeat, tested])
        for repeat, _, tested in task.training()
        if len(np.unique(task.classes[tested])) == 2
    ]
    return round(float(np.mean(found)), 5)


def fit_and_decide(train: Float64, classes: Int64, patients: Int64, test: Float64) -> tuple[float, Float64]:
    """Choose C inside the training part; return it and the decision values of the test part.

    Args:
        train: (n, D) scaled features
        classes: (n,) of these
        patients: (n,) of these
        test: (m, D) likewise scaled features
    """
    train, test = _rotated(train, test)
    aucs = []
    for fitted, held_out in _grouped_folds(classes, patients, 0):
        if len(np.unique(classes[fitted])) == len(np.unique(classes[held_out])) == 2:
            decisions = decision_path(train[fitted], classes[fitted], train[held_out])
            aucs.append([roc_auc_score(classes[held_out], values) for values in decisions])
    number = one_standard_error(np.array(aucs)) if aucs else len(CS) // 2
    return CS[number], decision_path(train, classes, test, CS[: number + 1])[-1]


def _rotated(train: Float64, test: Float64) -> tuple[Float64, Float64]:
    """Return the features in the space that the training images span, if these are fewer: the fits stay the same."""
    if len(train) >= train.shape[1]:
        return train, test
    axes = np.linalg.svd(train, full_matrices=False)[2].T
    return train @ axes, test @ axes


def decision_path(train: Float64, classes: Int64, test: Float64, cs: tuple[float, ...] = CS) -> list[Float64]:
    """Return the decision values of the test part for each C, ascending."""
    model = LogisticRegression(class_weight="balanced", solver="newton-cholesky", warm_start=True)
    return [model.set_params(C=c).fit(train, classes).decision_function(test) for c in cs]


def one_standard_error(aucs: Float64) -> int:
    """Return the number of the smallest C whose mean AUC (folds, Cs) is within one standard error of the best."""
    means = aucs.mean(axis=0)
    best = int(means.argmax())
    error = aucs[:, best].std(ddof=1) / len(aucs) ** 0.5 if len(aucs) > 1 else 0.0
    return int(np.flatnonzero(means >= means[best] - error)[0])


def nearest_neighbors(train: Float64, classes: Int64, test: Float64) -> Float64:
    """Return the share of ill images among the nearest training images by cosine, weighted by it."""
    normed = [values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12) for values in (train, test)]
    cosines = normed[1].astype(np.float32) @ normed[0].astype(np.float32).T
    count = min(NEIGHBORS, len(train))
    nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    weights = np.exp(np.take_along_axis(cosines, nearest, axis=1) / 0.1)
    shares: Float64 = (weights * classes[nearest]).sum(axis=1) / weights.sum(axis=1)
    return shares


def levels(values: Float64) -> UInt8:
    """Return the rank of each value as one of 256 levels; equal values have equal levels."""
    _, place = np.unique(values, return_inverse=True)
    counts = np.bincount(place)
    middle = np.cumsum(counts) - counts / 2
    kept: UInt8 = (middle[place] / len(values) * _LEVELS).astype(np.uint8)
    return kept
