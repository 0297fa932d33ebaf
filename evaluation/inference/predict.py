"""`sternum predict`: scores of new images by a kept probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.inference.config import PredictConfig
from evaluation.inference.embedder import LOCAL_BATCH
from evaluation.inference.images import (
    BATCHES_A_PART,
    FileImages,
    ImageRecord,
    ImageSource,
    ShardImages,
    nothing_but_refused,
    require_one_kind,
)
from evaluation.inference.probes import Answer, Likeness, OpenedProbe, open_probe
from infra.configuration.options import key
from infra.log import progress
from sharding.format.manifest import Rejection


@dataclass(frozen=True)
class Predictions:
    """What a probe says of n images.

    Attributes:
        probe: the probe
        records: what identifies each image
        answers: the answer to each question of the task
        likeness: how like the training images they are; None if that is unknown
        refused: the files that are no images
    """

    probe: OpenedProbe
    records: list[ImageRecord]
    answers: list[Answer]
    likeness: Likeness | None
    refused: list[Rejection]


def predict(config: PredictConfig) -> Predictions:
    """Score images by the backbone and the fitted classifiers of a probe.

    An image file is prepared as the images of the probe's set were packed. So a file of that set, or the DICOM file
    that an image of it was made from, gets the score of the packed image.

    Raises:
        UserError: if there are no images or no such probe
        RunFailed: if no file is an image, or a checkpoint or a sample of a shard is damaged
    """
    probe = open_probe(config.probe, key(config, "probe"), preset=config.preset, features=config.features)
    sources, refused_files = open_sources(config, probe)
    records, features, refused = list[ImageRecord](), [], list(refused_files)
    for source in sources:
        numbers = range(len(source.names))
        for part in progress(source.parts(numbers, config.workers), "predicting", total=len(numbers), unit="part"):
            values = probe.embedder.features(part.batches, part.name_of)
            features += [values] * bool(len(values))
            records += part.records
            refused += part.refused
    if not features:
        raise nothing_but_refused(refused)
    values = np.concatenate(features)
    return Predictions(probe, records, probe.answers(values), probe.likeness(values), refused)


def open_sources(config: PredictConfig, probe: OpenedProbe) -> tuple[Sequence[ImageSource], Sequence[Rejection]]:
    """Return the images as a probe takes them, and the files that are none; raises UserError if there are none."""
    if require_one_kind(config.images, key(config, "images")):
        fetch = config.data.fetch
        return [ShardImages(location, LOCAL_BATCH, BATCHES_A_PART, fetch) for location in config.images], []
    files = FileImages(
        [Path(location) for location in config.images],
        probe.first.encoding,
        LOCAL_BATCH,
        BATCHES_A_PART,
        follow_links=config.follow_links,
    )
    return [files], files.refused
