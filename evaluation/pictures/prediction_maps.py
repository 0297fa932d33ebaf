"""Pictures for `sternum predict --maps`: each image with the evidence for the decision on it in color."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from torch import Tensor

from evaluation.inference.config import PredictConfig
from evaluation.inference.images import ImageRecord
from evaluation.inference.predict import Predictions, open_sources
from evaluation.inference.prediction_files import WARNING, name_of
from evaluation.pictures.explainer import NoMap, direction_of, explainer_of
from evaluation.pictures.overlay import overlay
from infra.arrays import Float32
from infra.configuration.options import setting
from infra.errors import RunFailed, UserError, require
from infra.log import progress
from infra.storage.files import atomic_folder, file_name_of, write_atomic
from infra.storage.json_files import encode_json

LIST: Final = "maps.json"


@dataclass(frozen=True)
class _Listed:
    """A picture: of which image and class, what was decided, and therefore what the color shows evidence for."""

    file: str
    image: str
    sha256: str
    positive: str
    score: float
    is_positive: bool


@dataclass(frozen=True)
class _List:
    warning: str
    method: str
    maps: list[_Listed]


def require_own_folder(config: PredictConfig) -> None:
    """Raise UserError if the folder for maps holds anything but maps of an earlier prediction."""
    folder = config.maps
    if folder is None or not folder.exists():
        return
    is_own = folder.is_dir() and ((folder / LIST).is_file() or not any(folder.iterdir()))
    require(is_own, f"{setting(config, 'maps')} exists and holds no {LIST} of a prediction; name a new folder")


def write_prediction_maps(config: PredictConfig, folder: Path, predictions: Predictions) -> int:
    """Write a picture of each image and question, and the list `maps.json`, as one folder.

    Args:
        config: the images, which are read a second time
        folder: the folder; one of an earlier prediction is replaced
        predictions: what the probe says of them

    Returns:
        The number of pictures.

    Raises:
        UserError: if the network has no maps, or the disk is full
        RunFailed: if images have changed since they were scored
    """
    maker = _Maker(config, predictions)
    with atomic_folder(folder) as path:
        listed = list(maker.write(path))
        write_atomic(path / LIST, encode_json(_List(WARNING, maker.explainer.method.method, listed)))
    return len(listed)


class _Maker:
    """Makes the pictures of a prediction."""

    def __init__(self, config: PredictConfig, predictions: Predictions) -> None:
        """Raise UserError if the network has no maps."""
        embedder = predictions.probe.embedder
        try:
            self.explainer = explainer_of(embedder.backbone, embedder.preprocessing.size_px, embedder.device)
        except NoMap as reason:
            raise UserError(f"{setting(config, 'maps')}: {reason}; leave the option out") from reason
        self._config, self._predictions = config, predictions
        self._directions = [direction_of(numbers.classifiers) for _, numbers in predictions.probe.questions]

    def write(self, folder: Path) -> Iterator[_Listed]:
        """Write the pictures and yield what the list says of each, image by image."""
        preprocessing = self._predictions.probe.embedder.preprocessing
        first = 0
        for views in self._views():
            pixels = views[0][:, 0].cpu().numpy() * preprocessing.std + preprocessing.mean
            maps = [self._maps(views, first, question) for question in range(len(self._directions))]
            for offset, image in enumerate(pixels):
                for question, of_question in enumerate(maps):
                    item = self._listed(first + offset, question)
                    Image.fromarray(overlay(image.clip(0, 1), of_question[offset])).save(folder / item.file)
                    yield item
            first += len(pixels)

    def _maps(self, views: Sequence[Tensor], first: int, question: int) -> Float32:
        """Return the evidence (n, h, w) for the decisions on a question about images that begin with number `first`."""
        decisions = self._predictions.answers[question].is_positive[first : first + len(views[0])]
        sides = np.where(decisions, 1, -1).astype(np.float32)
        return self.explainer.maps(views, sides[:, None] * self._directions[question])

    def _views(self) -> Iterator[Sequence[Tensor]]:
        """Yield the input of the backbone, batch by batch."""
        sources, _ = open_sources(self._config, self._predictions.probe)
        seen = list[ImageRecord]()
        for source in sources:
            numbers = range(len(source.names))
            parts = source.parts(numbers, self._config.workers)
            for part in progress(parts, "drawing maps", total=len(numbers), unit="part"):
                with closing(self._predictions.probe.embedder.views(part.batches, part.name_of)) as batches:
                    yield from (batch.views for batch in batches)
                seen += part.records
        if seen != self._predictions.records:
            raise RunFailed("the images have changed while they were scored; run the command again")

    def _listed(self, number: int, question: int) -> _Listed:
        record, answer = self._predictions.records[number], self._predictions.answers[question]
        return _Listed(
            file=f"{number + 1:06d}-{file_name_of(answer.probe.positive)}.png",
            image=name_of(record),
            sha256=record.sha256,
            positive=answer.probe.positive,
            score=float(answer.score[number]),
            is_positive=bool(answer.is_positive[number]),
        )
