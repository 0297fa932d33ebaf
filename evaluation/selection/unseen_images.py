"""On whom checkpoints are measured without labels: images of patients that the pretraining has not seen."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from evaluation.data.feature_sources import Extractor, FeatureMatrix, FeatureSource
from evaluation.data.labeled_sets import LabeledSet, PretrainingSamples
from evaluation.selection.label_free import extract_views, measures
from infra.log import progress
from infra.rng import uniform
from ssl_core.views.batches import RandomViews, image_batches
from ssl_core.views.spec import ViewSpec

_LEAST_IMAGES: Final = 100
_VIEWED_IMAGES: Final = 512
_VIEWS: Final = 10  # of each, as Thilak et al. 2024 take for LiDAR

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UnseenImages:
    """rows: (n,) of each dataset's samples, by its label. who: a sentence fragment."""

    rows: dict[str, Ints]
    who: str

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(rows) for rows in self.rows.values())


def unseen_images(opened: Sequence[LabeledSet], seen: PretrainingSamples | None) -> UnseenImages:
    """Choose the images of unseen patients, all images where these are too few or not known; `who` says which."""
    everyone = {packed.label: np.arange(len(packed.samples.ids)) for packed in opened}
    if seen is None:
        return UnseenImages(everyone, "all images, since the shards of the pretraining are not there to compare with")
    unseen = {packed.label: np.flatnonzero(~np.isin(packed.samples.patient_ids, seen.patients)) for packed in opened}
    chosen = UnseenImages({label: rows for label, rows in unseen.items() if len(rows)}, "")
    if chosen.images < _LEAST_IMAGES:
        return UnseenImages(
            everyone, f"all images, since only {chosen.images} are of patients whom pretraining has not seen"
        )
    counts = ", ".join(f"{len(rows)} of {label}" for label, rows in chosen.rows.items())
    return UnseenImages(chosen.rows, f"images of patients whom pretraining has not seen: {counts}")


def measure(
    chosen: UnseenImages,
    opened: Sequence[LabeledSet],
    features: Mapping[FeatureSource, Mapping[str, FeatureMatrix]],
    extractor: Extractor,
    spec: ViewSpec,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return the measures of each source, by its name; `spec` and `seed` are those of the pretraining's views."""
    there = [packed for packed in opened if packed.label in chosen.rows]
    viewed = _viewed(chosen, there, seed)
    measured = {}
    for source, stored in progress(features.items(), "measuring checkpoints", len(features), unit="checkpoint"):
        of_images = np.concatenate([stored[packed.label].values[chosen.rows[packed.label]] for packed in there])
        backbone = source.backbone()
        of_views = []
        for packed in there:
            with closing(
                image_batches(
                    packed.shards,
                    RandomViews(spec, _VIEWS, seed),
                    numbers=viewed[packed.label],
                    local_batch=extractor.local_batch,
                    mean=extractor.preprocessing.mean,
                    std=extractor.preprocessing.std,
                    view_executor=extractor.kind,
                    device=extractor.device,
                )
            ) as batches:
                of_views.append(extract_views(backbone, (batch.views for batch in batches), extractor.device))
        measured[source.name] = measures(of_images, np.concatenate(of_views))
    return measured


def _viewed(chosen: UnseenImages, there: Sequence[LabeledSet], seed: int) -> dict[str, Ints]:
    """Draw the images that are augmented, in packed order: so many at most, from each dataset its share."""
    drawn = {}
    for packed in there:
        rows = chosen.rows[packed.label]
        count = min(len(rows), max(2, _VIEWED_IMAGES * len(rows) // chosen.images))
        draws = uniform(seed, "probe-held-out", packed.samples.ids[rows], 0, 1)[:, 0]
        drawn[packed.label] = np.sort(rows[np.argsort(draws)[:count]])
    return drawn
