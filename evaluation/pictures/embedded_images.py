"""The images whose features are mapped: some test images of each set, with the answers to one question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.data.extractor import Features
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.probe_tasks import ProbeTask
from evaluation.inference.neighbors import directions
from evaluation.results.rows import ProbeKind
from infra.arrays import Float32, Int64
from infra.rng import uniform

# How many networks of each kind are mapped: the backbone before training, and the first, middle and last checkpoint.
NETWORKS: Final[dict[ProbeKind, int]] = {"untrained": 1, "initial": 1, "compared": 2, "checkpoint": 3}
MOST_IMAGES: Final = 2000  # of a set
MOST_POINTS: Final = 4000  # of all maps together, which bounds their time
LEAST_IMAGES: Final = 200  # that a set keeps, however many maps there are


@dataclass(frozen=True, eq=False)
class EmbeddedImages:
    """n test images of a set in the order of their identities, so that repacking changes nothing.

    Attributes:
        task: the question that they answer
        asked: how many questions the task has
        test_images: test images that answer the question
        rows: (n,) of the images in their set
        classes: (n,) 1 positive, 0 negative
        patients: (n,) codes
        features: of each network (n, D), scaled to length 1, because the classifiers' neighbors are those by cosine
    """

    task: ProbeTask
    asked: int
    test_images: int
    rows: Int64
    classes: Int64
    patients: Int64
    features: dict[FeatureSource, Float32]

    @property
    def keys(self) -> list[str]:
        """Key of each image in its set."""
        return [self.task.labeled_set.samples.keys[row] for row in self.rows.tolist()]


def embedded_images(tasks: Sequence[ProbeTask], features: Features, seed: int) -> list[EmbeddedImages]:
    """Return the images of each set, drawn by `seed` and identity if there are too many.

    Args:
        tasks: all questions that are probed; each may be named several times
        features: features of all sources
        seed: determines the draw
    """
    networks = [
        source
        for kind, most in NETWORKS.items()
        for source in spread([source for source in features if source.kind == kind], most)
    ]
    questions = _questions(tasks)
    maps = max(1, len(networks) * len(questions))
    most = min(MOST_IMAGES, max(LEAST_IMAGES, MOST_POINTS // maps))
    return [_embedded(task, asked, features, networks, most, seed) for task, asked in questions]


def spread(sources: Sequence[FeatureSource], most: int) -> list[FeatureSource]:
    """Return at most so many sources at equal distances: the first, and if there may be several, the last."""
    places = np.linspace(0, len(sources) - 1, min(most, len(sources)))
    return [sources[round(place)] for place in places.tolist()]


def _questions(tasks: Sequence[ProbeTask]) -> list[tuple[ProbeTask, int]]:
    """Return one question of each set, and how many its task has.

    It is of the set's first task, by `rigorous` if that was probed, and has the most test images in its smaller class.
    """
    of_sets: dict[str, list[ProbeTask]] = {}
    for task in dict.fromkeys(tasks):
        of_sets.setdefault(task.labeled_set.label, []).append(task)
    chosen = []
    for of_set in of_sets.values():
        strict = [task for task in of_set if task.preset.chooses_threshold] or of_set
        first = [task for task in strict if task.record.task_label == strict[0].record.task_label]
        chosen.append((max(first, key=_smaller_class), len(first)))
    return chosen


def _smaller_class(task: ProbeTask) -> int:
    classes = task.cohort.classes[task.cohort.in_test.any(axis=0)]
    return min(int(classes.sum()), int((1 - classes).sum()))


def _embedded(
    task: ProbeTask, asked: int, features: Features, networks: Sequence[FeatureSource], most: int, seed: int
) -> EmbeddedImages:
    cohort, ids = task.cohort, task.labeled_set.samples.ids
    tested = np.flatnonzero(cohort.in_test.any(axis=0))
    draws = uniform(seed, "embeddings", ids[cohort.rows[tested]], 0, 1)[:, 0]
    chosen = tested[np.argsort(draws, kind="stable")[:most]]
    chosen = chosen[np.argsort(ids[cohort.rows[chosen]])]
    rows = cohort.rows[chosen]
    return EmbeddedImages(
        task=task,
        asked=asked,
        test_images=len(tested),
        rows=rows,
        classes=cohort.classes[chosen],
        patients=cohort.patients[chosen],
        features={network: directions(features[network][task.labeled_set.label].values[rows]) for network in networks},
    )
