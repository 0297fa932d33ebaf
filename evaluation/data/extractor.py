"""Extraction of the features of whole datasets, each done once and then read from disk."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing, extract, fingerprint, load_stored, require_finite, store
from evaluation.data.labeled_sets import LabeledSet
from infra.arrays import Float32, Int64
from infra.log import progress
from infra.ranks.devices import device_of, use_ieee_fp32
from infra.ranks.processes import Ranks
from sharding.reading.shard_set import ShardSet
from ssl_core.model.published import Input
from ssl_core.views import ViewTask, build_view_executor
from ssl_core.views.batches import Batch, ImageViews, image_batches
from ssl_core.views.parameters import Fit

Features = Mapping[FeatureSource, Mapping[str, FeatureMatrix]]  # source -> label of a dataset -> features


@dataclass(frozen=True)
class Extractor:
    """Extracts features once for each (weights, images, preprocessing) and keeps them in a folder.

    The network runs on the GPU if there is one, else on all CPU cores (torch's own threads), while other threads
    decode the next images.

    Attributes:
        folder: folder of the stored features
        preprocessing: input of the backbones
        local_batch: images that go through a backbone at once
        view_executor: image decoder: auto, dali or torchvision
        device: device on which the backbones run
    """

    folder: Path
    preprocessing: Preprocessing
    local_batch: int
    view_executor: str
    device: torch.device

    def fitting(self, source: FeatureSource) -> "Extractor":
        """Return the extractor for the input that a source takes."""
        if source.own_input is None:
            return self
        size_px, antialias = source.own_input
        own = replace(self.preprocessing, size_px=size_px, mean=0.0, std=1.0, antialias=antialias)
        return replace(self, preprocessing=own)

    def features(self, source: FeatureSource, labeled_sets: Iterable[LabeledSet]) -> dict[str, FeatureMatrix]:
        """Return the features of all images of each dataset, by its label.

        Raises:
            UserError: if they are not finite.
        """
        backbone = source.backbone()
        matrices = {}
        for labeled_set in labeled_sets:
            identity = self.identity(backbone, labeled_set.manifest.identity)
            values = self.keep(identity, None, labeled_set)
            if values is None:
                values = self.extract(backbone, labeled_set.shards, f"{source.name} on {labeled_set.label}")
                self.keep(identity, values, labeled_set)
            matrices[labeled_set.label] = FeatureMatrix(identity, values)
        return matrices

    def identity(self, backbone: nn.Module, data_identity: str) -> str:
        """Return the hash that identifies the features of a backbone on the images with this identity."""
        return fingerprint(backbone, data_identity, self.preprocessing)

    @staticmethod
    def file_name(identity: str) -> str:
        """Return the name of the file that keeps these features."""
        return f"{identity[:32]}.safetensors"

    def stored(self) -> frozenset[str]:
        """Return the names of all files in the folder."""
        return frozenset(path.name for path in self.folder.glob("*.safetensors"))

    def keep(self, identity: str, values: Float32 | None, labeled_set: LabeledSet) -> Float32 | None:
        """Store the features of a set, or without values return the stored ones; None if there are none."""
        path = self.folder / self.file_name(identity)
        if values is None:
            return load_stored(path, labeled_set.samples.ids, dimensions=2)
        store(path, values, labeled_set.samples.ids)
        return values

    def extract(self, backbone: nn.Module, shards: ShardSet, name: str, *, numbers: Int64 | None = None) -> Float32:
        """Return the features (n, D) of the chosen images without storing them.

        Args:
            backbone: maps images (n, 1, size, size) to features (n, D)
            shards: the images
            name: name of backbone and images in messages
            numbers: (n,) positions of the chosen images in packed order; by default all images

        Raises:
            UserError: if they are not finite.
        """
        with closing(self.batches(shards, self.preprocessing.views, numbers=numbers)) as batches:
            images = (batch.views for batch in batches)
            total = -(-(shards.samples if numbers is None else len(numbers)) // self.local_batch)
            values = extract(backbone, progress(images, name, total, unit="batch"), self.device)
        require_finite(values, name)
        return values

    def batches(
        self, shards: ShardSet, views: ImageViews, *, numbers: Int64 | None = None
    ) -> Generator[Batch, None, None]:
        """Yield views of the chosen images, normalized for the backbones; close it when done."""
        return image_batches(
            shards,
            views,
            numbers=numbers,
            local_batch=self.local_batch,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            view_executor=self.view_executor,
            device=self.device,
        )


def build_extractor(
    folder: Path, images: Input, *, antialias: bool, fit: Fit, mirrored: bool, view_executor: str, local_batch: int
) -> Extractor:
    """Return the extractor for backbones of one input.

    Args:
        folder: folder of the stored features
        images: size and normalization of one gray channel
        antialias: whether images are reduced without aliasing
        fit: how an image that is not square becomes a square
        mirrored: whether to average the features of an image and of its mirror image
        view_executor: image decoder: auto, dali or torchvision
        local_batch: images that go through a backbone at once
    """
    device = device_of(Ranks())
    size_px, (mean,), (std,) = images
    task = ViewTask(size_px, 1, mean, std, max_batch=1, device=device)
    use_ieee_fp32()
    maker = maker_of_inputs(view_executor, task)
    preprocessing = Preprocessing(size_px, mean, std, maker, fit, mirrored, antialias)
    return Extractor(folder, preprocessing, local_batch, view_executor, device)


def on_this_machine(extractor: Extractor) -> Extractor:
    """Return an extractor that another machine sent, for the device of this one."""
    device, given = device_of(Ranks()), extractor.preprocessing
    use_ieee_fp32()
    task = ViewTask(given.size_px, 1, given.mean, given.std, max_batch=1, device=device)
    maker = maker_of_inputs(extractor.view_executor, task)
    return replace(extractor, device=device, preprocessing=replace(given, executor=maker))


def maker_of_inputs(view_executor: str, task: ViewTask) -> str:
    """Name what decodes the images, and the GPU if one does: nvJPEG and cuDNN round otherwise than the CPU's libraries.

    Args:
        view_executor: auto, dali or torchvision
        task: the views, with their device
    """
    name = type(build_view_executor(view_executor, task)).__name__
    return f"{name} on {task.device.type}" if task.device.type == "cuda" else name
