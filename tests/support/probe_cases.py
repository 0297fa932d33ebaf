"""Probe cases without images."""

from typing import cast

import numpy as np

from evaluation.data.cohort import Cohort
from evaluation.data.division import divide
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.presets import PRESETS, Preset
from evaluation.results.tasks import BUILT_IN
from infra.arrays import Int64
from infra.rng import permutation
from tests.support.probe_results import made_dataset


def made_task(preset: Preset = PRESETS["rigorous"], groups: Int64 | None = None) -> ProbeTask:
    """A task whose images and parts are given in the cases; groups of images that share a patient or picture."""
    nothing = np.empty(0, np.int64)
    [task] = BUILT_IN["cell"]
    cohort = Cohort("cell", task, task.questions[0], nothing, nothing, nothing, nothing[None], "official", {})
    labeled_set = cast("LabeledSet", None)
    return ProbeTask(labeled_set, cohort, preset, made_dataset("rigorous"), nothing if groups is None else groups)


def made_case(images: int = 600, rounds: int = 1, sick: float = 0.4) -> ProbeCase:
    """Patients of three images and mostly one class; in each round other fifths are tested and folded."""
    random = np.random.default_rng(0)
    patients = np.arange(images) // 3
    classes = (random.random(images // 3)[patients] < sick).astype(np.int64) ^ (random.random(images) < 0.1)
    folds = []
    for number in range(rounds):
        fold = divide(classes, patients, 5, number, "test") - 1
        fold[fold >= 0] = divide(classes[fold >= 0], patients[fold >= 0], 4, 0, "inner")
        folds.append(fold)
    matrix = FeatureMatrix("random", random.normal(size=(images, 4)).astype(np.float32))
    rows = permutation(images, 0, "rows")
    return ProbeCase(
        made_task(), "epoch 1", "checkpoint", 1.0, 5, matrix, rows, patients,
        np.tile(classes, (rounds, 1)), np.stack(folds), False,
    )  # fmt: skip
