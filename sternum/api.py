"""The two objects of the Python interface, each a thin layer over what the commands use."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.data.backbones.opened import InputOptions
from evaluation.inference.arrays import array_batches
from evaluation.inference.backbones import name_backbone
from evaluation.inference.embedder import Embedder, build_embedder
from evaluation.inference.probes import Answer, Likeness, OpenedProbe, open_probe
from evaluation.results.presets import PresetName
from infra.arrays import Float32, UInt8
from sharding.reading.fetch import FetchConfig
from ssl_core.views.parameters import Fit


class Backbone:
    """A frozen backbone with the preprocessing that it was trained with."""

    def __init__(self, embedder: Embedder, shorter_side_px: int) -> None:
        """Wrap an opened backbone; `load_backbone` makes one.

        Args:
            embedder: the backbone
            shorter_side_px: larger images are reduced to this shorter side first, as packing does
        """
        self._embedder, self._shorter_side_px = embedder, shorter_side_px

    @property
    def size_px(self) -> int:
        """Width and height of the network's input."""
        return self._embedder.preprocessing.size_px

    def embed(self, images: Sequence[UInt8] | UInt8) -> Float32:
        """Return the features (N, D) of gray images.

        Args:
            images: an array (N, H, W) of uint8, or a list of arrays (H, W) of any sizes; 0 is black, as for air

        Raises:
            UserError: if an image is of another type or shape, or its features are not finite
        """
        batches = array_batches(images, self._shorter_side_px, self._embedder.local_batch)
        return self._embedder.features(batches)


class Probe:
    """A kept probe of a run, with its backbone.

    Attributes:
        backbone: the backbone whose features it reads
        classes: names of the positive classes, one for each question of the task
    """

    def __init__(self, opened: OpenedProbe) -> None:
        """Wrap an opened probe; `load_probe` makes one."""
        self._opened = opened
        self.backbone = Backbone(opened.embedder, opened.first.encoding.shorter_side_px)
        self.classes = [probe.positive for probe, _ in opened.questions]

    def score(self, images: Sequence[UInt8] | UInt8) -> dict[str, Answer]:
        """Return the answer for each class, for gray images as `Backbone.embed` takes them."""
        return self.score_features(self.backbone.embed(images))

    def score_features(self, features: Float32) -> dict[str, Answer]:
        """Return the answer for each class, for features (N, D) of the probe's own backbone."""
        return dict(zip(self.classes, self._opened.answers(features), strict=True))

    def likeness(self, features: Float32) -> Likeness | None:
        """Say how like the training images N images are, by their features (N, D); None if those are gone."""
        return self._opened.likeness(features)


def load_backbone(weights: str | Path, *, fit: Fit | None = None, mirrored: bool = False) -> Backbone:
    """Load a backbone onto the GPU, or the CPU of a machine without one.

    Args:
        weights: a run (its newest checkpoint), a checkpoint, an export, published weights in the cache such as
            "torchvision/resnet50.IMAGENET1K_V2", "FILE@NETWORK", or a transformers folder
        fit: how an image that is not square becomes a square: pad, squash or square; by default what an export says,
            else pad
        mirrored: average the features of an image and of its mirror image

    Raises:
        UserError: if there are no such weights
        RunFailed: if a checkpoint is damaged
    """
    what, options = f"weights={weights}", InputOptions()
    named = name_backbone(str(weights), what, options, fit, mirrored=mirrored, fetch=FetchConfig())
    return Backbone(build_embedder(named.network, named.preprocessing), named.encoding.shorter_side_px)


def load_probe(run: str | Path, task: str, *, preset: PresetName | None = None, features: str | None = None) -> Probe:
    """Load a probe that `sternum probe` kept with a run, and its backbone.

    Args:
        run: the run folder
        task: name of the task as the tables of the run show it
        preset: gazda2021 or rigorous; by default rigorous, if the run was probed by it
        features: name of a row of the tables; by default the last checkpoint

    Raises:
        UserError: if there is no such probe, or its backbone is not the one that was probed
        RunFailed: if the checkpoint is damaged
    """
    return Probe(open_probe(f"{run}:{task}", "probe", preset=preset, features=features))
