"""What is probed: the checkpoints of a run, and the controls without which no score means much."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evaluation.data.features import (
    RAW_PIXELS_PX,
    Floats,
    Preprocessing,
    RawPixels,
    extract,
    fingerprint,
    load_stored,
    require_finite,
    store,
)
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.samples import Samples
from evaluation.results.results import Kind
from infra.errors import UserError
from infra.log import progress
from infra.processes import Ranks, device_of
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.model.encoder import untrained_backbone
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views import ViewTask, build_view_executor
from ssl_core.views.batches import WholeImage, image_batches

_BORDER_PX: Final = 3  # of the raw pixels: a tenth of the image at each side


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from. name: what a reader calls them; epoch and step: of a checkpoint."""

    name: str
    kind: Kind
    backbone: Callable[[], nn.Module]
    epoch: float | None = None
    step: int | None = None


def control_sources(pretraining: PretrainConfig) -> list[FeatureSource]:
    """Return the two that have features of their own; the others are derived from these and from the checkpoints."""
    return [
        FeatureSource("32 x 32 raw pixels", "pixels", RawPixels),
        FeatureSource(
            "untrained backbone", "untrained", lambda: untrained_backbone(pretraining.model, pretraining.seed)
        ),
    ]


def checkpoint_sources(
    run: Path, pretraining: PretrainConfig, asked: Literal["all", "last"] | Sequence[int]
) -> list[FeatureSource]:
    """Return the checkpoints asked for, in order.

    Raises UserError when there are none, or when one is of another architecture than the run's configuration.
    """
    chosen = _chosen(run, find_checkpoints(run), asked)
    for checkpoint in chosen:
        if checkpoint.state.backbone != pretraining.model.backbone:
            raise UserError(
                f"{checkpoint.path} is of a {checkpoint.state.backbone}, but model.backbone in {run / 'config.yaml'} "
                f"is {pretraining.model.backbone}; probe it in the run that wrote it"
            )
    names = [f"epoch {round(checkpoint.epoch, 2):g}" for checkpoint in chosen]
    return [
        FeatureSource(
            name if names.count(name) == 1 else f"{name}, step {checkpoint.step}",
            "checkpoint",
            partial(load_backbone, checkpoint),
            checkpoint.epoch,
            checkpoint.step,
        )
        for name, checkpoint in zip(names, chosen, strict=True)
    ]


def _chosen(
    run: Path, checkpoints: Sequence[Checkpoint], asked: Literal["all", "last"] | Sequence[int]
) -> list[Checkpoint]:
    """Return the checkpoints asked for; an epoch is the first checkpoint after so many whole epochs."""
    if not checkpoints:
        raise UserError(f"{run} holds no checkpoint; pretrain first: sternum pretrain --help")
    if asked == "all":
        return list(checkpoints)
    if asked == "last":
        return [checkpoints[-1]]
    chosen = []
    for epoch in asked:
        of_epoch = [checkpoint for checkpoint in checkpoints if int(checkpoint.epoch) == epoch]
        if not of_epoch:
            there = ", ".join(f"{checkpoint.epoch:g}" for checkpoint in checkpoints)
            raise UserError(f"checkpoints: {run} has none of epoch {epoch}; its checkpoints are of {there}")
        chosen.append(of_epoch[0])
    return chosen


@dataclass(frozen=True)
class Extractor:
    """Extracts features once for each (weights, images, preprocessing) and keeps them in a folder.

    The network runs on the GPU where there is one, else on all CPU cores (torch's own threads), while other threads
    decode the next images.
    """

    folder: Path
    preprocessing: Preprocessing
    local_batch: int
    kind: str
    device: torch.device

    def features(self, source: FeatureSource, datasets: Iterable[LabeledSet]) -> dict[str, "FeatureMatrix"]:
        """Return the features of all images of each dataset, by its label.

        Raises UserError when they are not finite.
        """
        backbone = source.backbone()
        found = {}
        for packed in datasets:
            name = fingerprint(backbone, packed.manifest.identity, self.preprocessing)
            path = self.folder / f"{name[:32]}.safetensors"
            values = load_stored(path, packed.samples.ids)
            if values is None:
                values = self._extract(backbone, packed, f"{source.name} on {packed.label}")
                store(path, values, packed.samples.ids)
            found[packed.label] = FeatureMatrix(name, values)
        return found

    def _extract(self, backbone: nn.Module, packed: LabeledSet, what: str) -> Floats:
        with closing(
            image_batches(
                packed.shards,
                WholeImage(self.preprocessing.size_px),
                local_batch=self.local_batch,
                mean=self.preprocessing.mean,
                std=self.preprocessing.std,
                view_executor=self.kind,
                device=self.device,
            )
        ) as batches:
            images = (batch.views[0] for batch in batches)
            total = -(-packed.shards.samples // self.local_batch)
            values = extract(backbone, progress(images, what, total, unit="batch"), self.device)
        require_finite(values, what)
        return values


def extractor(run: Path, pretraining: PretrainConfig, *, kind: str, local_batch: int) -> Extractor:
    """Return the extractor for the input that the run's backbones were trained on: their size, their normalisation."""
    device = device_of(Ranks())
    trained = find_checkpoints(run)[-1].state
    size_px = pretraining.views.size_px
    task = ViewTask(size_px, 1, trained.pixel_mean, trained.pixel_std, max_batch=1, device=device)
    made_by = type(build_view_executor(kind, task)).__name__
    preprocessing = Preprocessing(size_px, trained.pixel_mean, trained.pixel_std, made_by)
    return Extractor(run / "features", preprocessing, local_batch, kind, device)


@dataclass(frozen=True)
class FeatureMatrix:
    """Features (N, D) of all images of a dataset. identity: a hash of all they depend on."""

    identity: str
    values: Floats


def border(pixels: FeatureMatrix) -> FeatureMatrix:
    """Return the outer pixels of the raw ones: what lies there (markers, collimation) is no disease."""
    inside = np.zeros((RAW_PIXELS_PX, RAW_PIXELS_PX), np.bool_)
    inside[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = True
    return FeatureMatrix(f"border {_BORDER_PX} of {pixels.identity}", pixels.values[:, ~inside.reshape(-1)])


def attributes(samples: Samples, rows: npt.NDArray[np.int64]) -> FeatureMatrix | None:
    """Return view, sex and age as features (N, D); None where they are the same for all images of the task.

    One column a view and a sex, the age in centuries, and whether it is known.
    """
    columns: list[npt.NDArray[np.float32]] = []
    for values in (samples.views, samples.sexes):
        columns += [
            np.array([str(value) == kind for value in values], np.float32) for kind in sorted(set(map(str, values)))
        ]
    columns.append(np.array([(age or 0.0) / 100 for age in samples.ages], np.float32))
    columns.append(np.array([age is not None for age in samples.ages], np.float32))
    told = np.stack(columns, axis=1)
    told = told[:, (told[rows] != told[rows][:1]).any(axis=0)]
    digest = hashlib.sha256(told.tobytes()).hexdigest()
    return FeatureMatrix(f"attributes {digest}", told) if told.shape[1] else None


def concatenated(stored: Mapping[str, FeatureMatrix]) -> FeatureMatrix:
    """Return the features of several datasets below each other."""
    identity = hashlib.sha256("".join(one.identity for one in stored.values()).encode()).hexdigest()
    return FeatureMatrix(f"joined {identity}", np.concatenate([one.values for one in stored.values()]))
