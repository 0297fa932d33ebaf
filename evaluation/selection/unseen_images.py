"""The images on which checkpoints are measured without labels: those of patients that pretraining has not seen."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.data.extractor import Extractor, Features
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.overlap import Seen
from evaluation.selection.label_free import extract_views, measures
from infra.arrays import Bool, Int64
from infra.log import progress
from infra.rng import uniform
from ssl_core.views.batches import RandomViews, image_batches
from ssl_core.views.spec import ViewSpec

_LEAST_IMAGES: Final = 100
_VIEWED_IMAGES: Final = 512
_VIEWS: Final = 10  # of each image, as in Thilak et al. 2024 for LiDAR


@dataclass(frozen=True)
class UnseenImages:
    """The images to measure.

    Attributes:
        rows: label of a dataset -> (n,) rows of its samples
        description: description of these images, as part of a sentence
    """

    rows: dict[str, Int64]
    description: str

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(len(rows) for rows in self.rows.values())


def unseen_images(labeled_sets: Sequence[LabeledSet], seen: Mapping[str, Seen]) -> UnseenImages:
    """Choose the images of unseen patients, or all images if the unseen ones are too few or unknown."""
    all_images = {labeled_set.label: np.arange(len(labeled_set.samples.ids)) for labeled_set in labeled_sets}
    if not seen:
        return UnseenImages(
            all_images, "all images, because the shards of the pretraining are not available to compare"
        )
    unseen = {
        labeled_set.label: np.flatnonzero(~_of_seen_patients(labeled_set, seen[labeled_set.label]))
        for labeled_set in labeled_sets
    }
    unseen = {label: rows for label, rows in unseen.items() if len(rows)}
    count = sum(len(rows) for rows in unseen.values())
    if count < _LEAST_IMAGES:
        return UnseenImages(
            all_images, f"all images, because only {count} are from patients that pretraining has not seen"
        )
    counts = ", ".join(f"{len(rows)} of {label}" for label, rows in unseen.items())
    return UnseenImages(unseen, f"images of patients that pretraining has not seen: {counts}")


def _of_seen_patients(labeled_set: LabeledSet, seen: Seen) -> Bool:
    """Return (N,) whether pretraining saw the image's patient, by name or in a picture."""
    patients = labeled_set.samples.patient_ids
    return seen.patients | np.isin(patients, patients[seen.images])


def measure_checkpoints(
    images: UnseenImages,
    labeled_sets: Sequence[LabeledSet],
    checkpoints: Features,
    extractor: Extractor,
    spec: ViewSpec,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Measure the features of each checkpoint.

    Args:
        images: the images to measure
        labeled_sets: the datasets
        checkpoints: the checkpoints and their features
        extractor: extracts the features of augmented views
        spec: views of the pretraining
        seed: seed of the views and of the choice of images to augment

    Returns:
        Name of a checkpoint -> measure -> value.
    """
    used = [labeled_set for labeled_set in labeled_sets if labeled_set.label in images.rows]
    augmented = _augmented_rows(images, used, seed)
    measured = {}
    for source, matrices in progress(checkpoints.items(), "measuring checkpoints", len(checkpoints), unit="checkpoint"):
        features = np.concatenate([matrices[item.label].values[images.rows[item.label]] for item in used])
        backbone = source.backbone()
        views = []
        for labeled_set in used:
            with closing(
                image_batches(
                    labeled_set.shards,
                    RandomViews(spec, _VIEWS, seed),
                    numbers=augmented[labeled_set.label],
                    local_batch=extractor.local_batch,
                    mean=extractor.preprocessing.mean,
                    std=extractor.preprocessing.std,
                    view_executor=extractor.view_executor,
                    device=extractor.device,
                )
            ) as batches:
                views.append(extract_views(backbone, (batch.views for batch in batches), extractor.device))
        measured[source.name] = measures(features, np.concatenate(views))
    return measured


def _augmented_rows(images: UnseenImages, labeled_sets: Sequence[LabeledSet], seed: int) -> dict[str, Int64]:
    """Draw the images to augment, in packed order: 512 at most, from each dataset its share."""
    drawn = {}
    for labeled_set in labeled_sets:
        rows = images.rows[labeled_set.label]
        count = min(len(rows), max(2, _VIEWED_IMAGES * len(rows) // images.count))
        draws = uniform(seed, "probe-held-out", labeled_set.samples.ids[rows], 0, 1)[:, 0]
        drawn[labeled_set.label] = np.sort(rows[np.argsort(draws)[:count]])
    return drawn
