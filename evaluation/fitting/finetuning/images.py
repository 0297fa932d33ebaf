"""The images of a task as fine-tuning reads them: their parts, their order in training, and their batches."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch

from evaluation.data.features import Preprocessing
from evaluation.fitting.finetuning.targets import Targets
from infra.arrays import Int64, UInt64
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from ssl_core.views.batches import Batch, image_batches, training_batches
from ssl_core.views.spec import ViewSpec

_LEAST_CROP_AREA: Final = 0.5  # a label describes the whole image, so a crop must not miss the lesion
_SHUFFLE_WINDOW: Final = 16384


@dataclass(frozen=True, eq=False)
class TaskImages:
    """The n images of a task; all labels have the same parts.

    Attributes:
        shards: the dataset
        ids: (n,) the samples
        targets: their answers
        fold: (n,) from 0 to at least 2 in the development part, -1 in the test part
    """

    shards: ShardSet
    ids: UInt64
    targets: Targets
    fold: Int64

    @cached_property
    def numbers(self) -> Int64:
        """(n,) positions of the samples among all of the dataset, in packed order."""
        return positions_of(self.ids, self.shards.whole_index()["sample"])

    @property
    def training(self) -> Int64:
        """Rows of the images that teach: those of fold 2 and above."""
        return np.flatnonzero(self.fold > 1)

    @property
    def choosing(self) -> Int64:
        """Rows of the images that choose the epoch: those of fold 0."""
        return np.flatnonzero(self.fold == 0)

    @property
    def validation(self) -> Int64:
        """Rows of the images that give the thresholds, and choose nothing else: those of fold 1."""
        return np.flatnonzero(self.fold == 1)

    @property
    def test(self) -> Int64:
        """Rows of the images of the test part."""
        return np.flatnonzero(self.fold == -1)


@dataclass(frozen=True)
class Inputs:
    """How images become the input of a network.

    Attributes:
        spec: views of the pretraining; training uses them with larger crops
        preprocessing: input of the backbone, whose normalization the training views get too
        view_executor: image decoder: auto, dali or torchvision
        device: device of the network
    """

    spec: ViewSpec
    preprocessing: Preprocessing
    view_executor: str
    device: torch.device

    def training_batches(self, images: TaskImages, order: SampleOrder, seed: int) -> Generator[Batch, None, None]:
        """Yield augmented views of the training images, without end and in the normalization of the shards."""
        area = max(self.spec.crop_area[0], _LEAST_CROP_AREA), 1.0
        return training_batches(
            images.shards,
            order,
            replace(self.spec, crop_area=area, small_views=0),
            seed=seed,
            view_executor=self.view_executor,
            device=self.device,
        )

    def renormalized(self, views: torch.Tensor, shards: ShardSet) -> torch.Tensor:
        """Turn the normalization of these shards into that of the pretraining, which the backbone knows."""
        return (views * shards.pixel_std + shards.pixel_mean - self.preprocessing.mean) / self.preprocessing.std

    def batches(self, images: TaskImages, rows: Int64, local_batch: int) -> Generator[Batch, None, None]:
        """Yield the whole images of these rows once, in packed order; no other image is decoded."""
        return image_batches(
            images.shards,
            self.preprocessing.views,
            numbers=np.sort(images.numbers[rows]),
            local_batch=local_batch,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            view_executor=self.view_executor,
            device=self.device,
        )


class TrainingOrder(SampleOrder):
    """The order of the training images alone, each once per epoch, in full batches.

    A task may concern one image in forty; dropping the others from batches of all images would leave one or two.
    """

    def __init__(self, images: TaskImages, local_batch: int, seed: int) -> None:
        shards, chosen = images.shards, images.ids[images.training]
        rows = [np.flatnonzero(np.isin(shards.index(shard)["sample"], chosen)) for shard in range(len(shards.shards))]
        counts = np.array([len(of_shard) for of_shard in rows])
        assert counts.sum() == len(chosen), "every image of the task lies in the shards, once"
        batch = min(local_batch, len(chosen))
        super().__init__(counts, lanes=1, global_batch=batch, window=_SHUFFLE_WINDOW, seed=seed)
        self._rows, self._starts = np.concatenate(rows), np.cumsum(counts) - counts

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Positions:
        """Return the positions of a step, as shards and their rows."""
        chosen = super().batch(step, rank, world)  # positions among the training images
        return chosen._replace(row=self._rows[self._starts[chosen.shard] + chosen.row])


def positions_of(wanted: UInt64, ids: UInt64) -> Int64:
    """Return where each of the wanted ids (m,) stands among all ids (n,), which hold it once: (m,)."""
    ascending = np.argsort(ids)
    return ascending[np.searchsorted(ids, wanted, sorter=ascending)]
