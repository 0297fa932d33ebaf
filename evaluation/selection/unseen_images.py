"""The images on which checkpoints are measured without labels: of patients neither pretrained on nor tested."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from evaluation.data.extractor import Extractor, Features
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.lineage import Lineage
from evaluation.data.overlap import Seen
from evaluation.data.probe_tasks import ProbeTask
from evaluation.selection.label_free import extract_views, lidar_bound, measures
from infra.arrays import Bool, Float32, Int64, UInt64
from infra.errors import RunFailed, UserError
from infra.log import progress
from infra.rng import uniform
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from ssl_core.views.batches import RandomViews
from ssl_core.views.spec import ViewSpec

_LEAST_IMAGES: Final = 100
_MOST_IMAGES: Final = 2560  # of the pretraining's folders, whose features are extracted for this alone
_VIEWED_IMAGES: Final = 512
_VIEWS: Final = 10  # of each image, as in Thilak et al. 2024 for LiDAR
_LEAST_VIEWS: Final = 3
_MARGIN: Final = 1.25  # images for each dimension where there are many dimensions


@dataclass(frozen=True)
class ImagesOfSet:
    """The images of one set to measure.

    Attributes:
        label: name of the set in messages
        shards: the set
        rows: (n,) positions of the images in packed order
        ids: (n,) their identities
        labeled: whether it is a labeled set, whose features are extracted anyway
    """

    label: str
    shards: ShardSet
    rows: Int64
    ids: UInt64
    labeled: bool

    def drawn(self, count: int, seed: int) -> "ImagesOfSet":
        """Return at most `count` of the images, drawn by their identities, in packed order."""
        draws = uniform(seed, "probe-held-out", self.ids, 0, 1)[:, 0]
        chosen = np.sort(np.argsort(draws)[:count])
        return replace(self, rows=self.rows[chosen], ids=self.ids[chosen])


@dataclass(frozen=True)
class UnseenImages:
    """The images to measure.

    Attributes:
        sets: the images of each set
        description: description of these images, as part of a sentence
    """

    sets: list[ImagesOfSet]
    description: str

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(len(images.rows) for images in self.sets)


def unseen_images(
    labeled_sets: Sequence[LabeledSet],
    tasks: Sequence[ProbeTask],
    seen: Mapping[str, Seen],
    lineage: Lineage,
    pretraining: DataConfig,
    fetch: FetchConfig,
    seed: int,
) -> UnseenImages:
    """Choose images of patients whom pretraining has not seen and no task tests.

    The choice of a checkpoint would fit the images on which it rests, so their AUC could not be quoted afterwards.
    Development images of the labeled sets come first. If these are too few, images of the pretraining's own folders
    take their place, of patients whom it left out, such as those of CheXpert's valid.csv.

    Args:
        labeled_sets: the labeled sets
        tasks: all tasks of the probe
        seen: what pretraining saw of each labeled set, by its label; none if unknown
        lineage: the shards of the run and of those that it descends from
        pretraining: the data of the run
        fetch: how to download
        seed: seed of the draw from the folders of the pretraining

    Raises:
        UserError: if there are too few images
    """
    tested = np.concatenate([_tested_patients(task) for task in tasks])
    sets = [_development_images(item, tested, seen.get(item.label)) for item in labeled_sets]
    found = UnseenImages([images for images in sets if len(images.rows)], "")
    if found.count >= _LEAST_IMAGES:
        unknown = (
            ""
            if lineage.is_whole
            else " (it is unknown whether pretraining saw them, because its shards are not available)"
        )
        counts = ", ".join(f"{len(images.rows)} of {images.label}" for images in found.sets)
        return replace(
            found, description=f"images of patients that were neither pretrained on nor tested{unknown}: {counts}"
        )
    left_out = _left_out_images(pretraining, fetch, tested, lineage) if lineage.is_whole else None
    if left_out is None or len(left_out.rows) < _LEAST_IMAGES:
        raise UserError(
            f"--select needs {_LEAST_IMAGES} images of patients that were neither pretrained on nor tested, but there "
            f"are {found.count} in --data.shards and {0 if left_out is None else len(left_out.rows)} in the folders of "
            "the pretraining; probe a set with an official test part, pretrain on --data.splits=[train], or leave out "
            "--select"
        )
    left_out = left_out.drawn(_MOST_IMAGES, seed)
    return UnseenImages(
        [left_out],
        f"images of patients that the pretraining left out of its own folders and no task tests: {len(left_out.rows)} "
        f"of {left_out.label}",
    )


def _tested_patients(task: ProbeTask) -> UInt64:
    """Return the identities of the patients in any test part of a task."""
    in_test = task.cohort.in_test.any(axis=0)
    return task.labeled_set.samples.patient_ids[task.cohort.rows[in_test]]


def _development_images(labeled_set: LabeledSet, tested: UInt64, seen: Seen | None) -> ImagesOfSet:
    patients, ids = labeled_set.samples.patient_ids, labeled_set.samples.ids
    usable = ~np.isin(patients, tested)
    if seen is not None:
        usable &= ~_of_seen_patients(patients, seen)
    rows = np.flatnonzero(usable)
    return ImagesOfSet(labeled_set.label, labeled_set.shards, rows, ids[rows], labeled=True)


def _of_seen_patients(patients: UInt64, seen: Seen) -> Bool:
    """Return (N,) whether pretraining saw the image's patient, by name or in a picture."""
    return seen.patients | np.isin(patients, patients[seen.images])


def _left_out_images(
    pretraining: DataConfig, fetch: FetchConfig, tested: UInt64, lineage: Lineage
) -> ImagesOfSet | None:
    """Return the images of the pretraining's folders whose patients it left out; None if these are unavailable."""
    try:
        whole = ShardSet(pretraining.shards, fetch=fetch)
        index = whole.whole_index()
    except (UserError, RunFailed):
        return None
    seen = [shards.whole_index()["patient"] for _, shards in lineage.available]
    rows = np.flatnonzero(~np.isin(index["patient"], np.concatenate([*seen, tested])))
    return ImagesOfSet(", ".join(dict.fromkeys(whole.names)), whole, rows, index["sample"][rows], labeled=False)


def measure_checkpoints(
    images: UnseenImages, checkpoints: Features, extractor: Extractor, spec: ViewSpec, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Measure the features of each checkpoint.

    Args:
        images: the images to measure
        checkpoints: the checkpoints and their features of the labeled sets
        extractor: extracts the features of other images and of augmented views
        spec: views of the pretraining
        seed: seed of the views and of the choice of images to augment

    Returns:
        Name of a checkpoint -> measure -> value; and measure -> why it is left out.
    """
    measured, left_out = {}, {}
    for source, matrices in progress(checkpoints.items(), "measuring checkpoints", len(checkpoints), unit="checkpoint"):
        backbone = source.backbone()
        features: Float32 = np.concatenate(
            [
                matrices[item.label].values[item.rows]
                if item.labeled
                else extractor.extract(backbone, item.shards, f"{source.name} on {item.label}", numbers=item.rows)
                for item in images.sets
            ]
        )
        augmented, views_count = _augmented(images, features.shape[1], seed)
        views = []
        for item in augmented:
            with closing(
                extractor.batches(item.shards, RandomViews(spec, views_count, seed), numbers=item.rows)
            ) as batches:
                views.append(extract_views(backbone, (batch.views for batch in batches), extractor.device))
        of_views = np.concatenate(views)
        measured[source.name] = measures(features, of_views)
        bound = lidar_bound(*of_views.shape)
        if bound is not None:
            left_out["LiDAR"] = bound
    return measured, left_out


def _augmented(images: UnseenImages, dimensions: int, seed: int) -> tuple[list[ImagesOfSet], int]:
    """Draw the images to augment, from each set its share, and return them with the number of views of each.

    LiDAR needs more images than dimensions. Where that is more than 512 there are fewer views of each, so that the work
    grows less; where there are not so many images, LiDAR is left out and 512 do for alignment.
    """
    wanted = max(_VIEWED_IMAGES, round(_MARGIN * dimensions))
    if images.count <= dimensions:
        wanted = _VIEWED_IMAGES
    share = min(1.0, wanted / images.count)
    drawn = [item.drawn(max(2, round(share * len(item.rows))), seed) for item in images.sets]
    return drawn, max(_LEAST_VIEWS, min(_VIEWS, _VIEWED_IMAGES * _VIEWS // wanted))
