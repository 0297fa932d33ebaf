"""A frozen backbone with its preprocessing, for images from anywhere."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Literal, NoReturn

import numpy as np
import torch
from torch import nn

from evaluation.data.extractor import maker_of_inputs
from evaluation.data.features import Preprocessing, extract, fingerprint, require_finite
from infra.arrays import Float32
from infra.errors import RunFailed
from infra.ranks.devices import device_of, use_ieee_fp32
from infra.ranks.processes import Ranks
from sharding.reading.stream import EncodedBatch
from ssl_core.views import ViewTask
from ssl_core.views.batches import Batch, encoded_views

ExecutorName = Literal["auto", "dali", "torchvision"]
LOCAL_BATCH: Final = 64


@dataclass(frozen=True)
class Embedder:
    """Computes features exactly as a probe does.

    Attributes:
        backbone: maps images (n, 1, size, size) to features (n, D)
        preprocessing: input of the backbone
        view_executor: image decoder: auto, dali or torchvision
        local_batch: images that go through the backbone at once
        device: device on which the backbone runs
    """

    backbone: nn.Module
    preprocessing: Preprocessing
    view_executor: ExecutorName
    local_batch: int
    device: torch.device

    @property
    def identity(self) -> str:
        """Hash of everything that the features of an image depend on."""
        return fingerprint(self.backbone, "", self.preprocessing)

    def features(
        self, images: Generator[EncodedBatch, None, None], name_of: Callable[[int], str] = "image {}".format
    ) -> Float32:
        """Return the features (n, D) of encoded images; (0, 0) of none.

        Args:
            images: the images, in batches of at most `local_batch`; closed at the end
            name_of: names an image by its position, for messages

        Raises:
            UserError: if features are not finite
            RunFailed: if an image does not decode
        """
        with closing(self.views(images, name_of)) as batches:
            first = next(batches, None)
            if first is None:
                return np.zeros((0, 0), np.float32)
            values = extract(self.backbone, (batch.views for batch in chain([first], batches)), self.device)
        require_finite(values, "these images")
        return values

    def views(
        self, images: Generator[EncodedBatch, None, None], name_of: Callable[[int], str] = "image {}".format
    ) -> Generator[Batch, None, None]:
        """Yield the input of the backbone; arguments and errors are those of `features`."""
        views, own = self.preprocessing.views, self.preprocessing
        task = ViewTask(own.size_px, views.count, own.mean, own.std, self.local_batch, self.device, steps=views.steps)
        done = 0

        def stop(_: EncodedBatch, position: int, reason: str) -> NoReturn:
            raise RunFailed(f"{name_of(done + position)} does not decode: {reason}; pack the dataset again")

        with closing(encoded_views(images, views, task, self.view_executor, stop)) as batches:
            for batch in batches:
                yield batch
                done += len(batch.rows)


def build_embedder(
    backbone: nn.Module,
    preprocessing: Preprocessing,
    *,
    view_executor: ExecutorName = "auto",
    local_batch: int = LOCAL_BATCH,
    ranks: Ranks | None = None,
) -> Embedder:
    """Return the embedder on this process's GPU, or on the CPU.

    Args:
        backbone: maps images (n, 1, size, size) to features (n, D)
        preprocessing: input of the backbone; the name of the executor is filled in
        view_executor: image decoder: auto, dali or torchvision
        local_batch: images that go through the backbone at once
        ranks: this process among all
    """
    device = device_of(ranks or Ranks())
    use_ieee_fp32()
    task = ViewTask(preprocessing.size_px, 1, preprocessing.mean, preprocessing.std, max_batch=1, device=device)
    own = replace(preprocessing, executor=maker_of_inputs(view_executor, task))
    return Embedder(backbone.to(device).eval(), own, view_executor, local_batch, device)
