"""Extraction of the features of whole datasets, each done once and then read from disk."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing, extract, fingerprint, load_stored, require_finite, store
from evaluation.data.labeled_sets import LabeledSet
from infra.arrays import Float32
from infra.log import progress
from infra.processes import Ranks, device_of
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views import ViewTask, build_view_executor
from ssl_core.views.batches import WholeImage, image_batches

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
        if source.own_size_px is None:
            return self
        own = replace(self.preprocessing, size_px=source.own_size_px, mean=0.0, std=1.0)
        return replace(self, preprocessing=own)

    def features(self, source: FeatureSource, labeled_sets: Iterable[LabeledSet]) -> dict[str, FeatureMatrix]:
        """Return the features of all images of each dataset, by its label.

        Raises:
            UserError: if they are not finite.
        """
        backbone = source.backbone()
        matrices = {}
        for labeled_set in labeled_sets:
            identity = fingerprint(backbone, labeled_set.manifest.identity, self.preprocessing)
            path = self.folder / f"{identity[:32]}.safetensors"
            values = load_stored(path, labeled_set.samples.ids, dimensions=2)
            if values is None:
                values = self._extract(backbone, labeled_set, f"{source.name} on {labeled_set.label}")
                store(path, values, labeled_set.samples.ids)
            matrices[labeled_set.label] = FeatureMatrix(identity, values)
        return matrices

    def _extract(self, backbone: nn.Module, labeled_set: LabeledSet, name: str) -> Float32:
        with closing(
            image_batches(
                labeled_set.shards,
                WholeImage(self.preprocessing.size_px),
                local_batch=self.local_batch,
                mean=self.preprocessing.mean,
                std=self.preprocessing.std,
                view_executor=self.view_executor,
                device=self.device,
            )
        ) as batches:
            images = (batch.views[0] for batch in batches)
            total = -(-labeled_set.shards.samples // self.local_batch)
            values = extract(backbone, progress(images, name, total, unit="batch"), self.device)
        require_finite(values, name)
        return values


def build_extractor(run: Path, pretraining: PretrainConfig, *, view_executor: str, local_batch: int) -> Extractor:
    """Return the extractor for the input that the run's backbones were trained on: its size and normalization.

    Args:
        run: a run with at least one checkpoint
        pretraining: configuration of the run
        view_executor: image decoder: auto, dali or torchvision
        local_batch: images that go through a backbone at once
    """
    device = device_of(Ranks())
    trained = find_checkpoints(run)[-1].state
    size_px = pretraining.views.size_px
    task = ViewTask(size_px, 1, trained.pixel_mean, trained.pixel_std, max_batch=1, device=device)
    decoder = type(build_view_executor(view_executor, task)).__name__
    preprocessing = Preprocessing(size_px, trained.pixel_mean, trained.pixel_std, decoder)
    return Extractor(run / "features", preprocessing, local_batch, view_executor, device)
