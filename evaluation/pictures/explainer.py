"""Maps of the evidence that an image holds for a score, by the method that suits the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.data.backbones.opened import GrayInput
from evaluation.pictures.grad_cam import GradCam, last_map_layer
from evaluation.pictures.token_relevance import TokenRelevance, patch_cells
from evaluation.results.classifier import Classifier
from infra.arrays import Float32
from ssl_core.model.encoder import Backbone
from ssl_core.model.stages import stages_of

_LOCAL_BATCH: Final = 16  # images whose graph is held; attention among all patches takes some 20 MB an image


class NoMap(Exception):
    """A network whose decisions no method here can explain; the message is a sentence without its full stop."""


class Method(Protocol):
    """A way to find the evidence in images."""

    @property
    def method(self) -> str:
        """What is computed, as a sentence."""

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the maps."""

    def evidence(self, images: Tensor, directions: Tensor) -> Tensor:
        """Return the evidence (n, h, w) in images (n, 1, size, size) for scores with the weights (n, D)."""


@dataclass(frozen=True)
class Explainer:
    """Makes maps of images.

    Attributes:
        method: how
        device: where the backbone is
    """

    method: Method
    device: torch.device

    def maps(self, views: Sequence[Tensor], directions: Float32) -> Float32:
        """Return where images hold evidence for a score, (n, h, w), at least 0.

        A score of features that are the mean over an image and its mirror image is the mean of the two scores, and so
        is the evidence; that in the mirror image is mirrored back.

        Args:
            views: the images, and if features are averaged so, their mirror images: (n, 1, size, size) each
            directions: (n, D) the weights of the features in each image's score, as `direction_of` gives them
        """
        found = [self._evidence(view, torch.from_numpy(directions)) for view in views]
        found = [maps.flip(-1) if number else maps for number, maps in enumerate(found)]
        return torch.stack(found).mean(dim=0).clamp(min=0).numpy()

    def _evidence(self, images: Tensor, directions: Tensor) -> Tensor:
        chunks = zip(torch.split(images, _LOCAL_BATCH), torch.split(directions, _LOCAL_BATCH), strict=True)
        return torch.cat([self.method.evidence(*(each.to(self.device) for each in chunk)).cpu() for chunk in chunks])


def direction_of(classifiers: Sequence[Classifier]) -> Float32:
    """Return the weights (D,) of the features in the mean logit of classifiers."""
    return np.mean([each.coefficients / each.scale for each in classifiers], axis=0).astype(np.float32)


def explainer_of(backbone: nn.Module, size_px: int, device: torch.device) -> Explainer:
    """Return the explainer of a backbone, which it moves to a device.

    Args:
        backbone: maps images (n, 1, size_px, size_px) to features
        size_px: side of the images
        device: where to compute

    Raises:
        NoMap: if no method suits the network
    """
    name, network = _named(backbone)
    backbone = backbone.to(device).eval()
    images = torch.zeros(1, 1, size_px, size_px, device=device)
    found = last_map_layer(backbone, stages_of(name, network), images)
    if found is not None:
        return Explainer(GradCam(backbone, *found), device)
    cells = patch_cells(backbone, images)
    if cells is None:
        raise NoMap(
            f"There is no map for {name}: it has no stages whose output is a map, and it is no vision transformer that "
            "attends among all patches"
        )
    return Explainer(TokenRelevance(backbone, cells), device)


def _named(backbone: nn.Module) -> tuple[str, nn.Module]:
    """Return the name of a backbone's network, and the network."""
    inner = backbone.network if isinstance(backbone, GrayInput) else backbone
    if isinstance(inner, Backbone):  # of a run, which may be named as a backbone from elsewhere
        return inner.name, inner.network.module
    assert isinstance(backbone, GrayInput), "backbones are of a run or from elsewhere"
    return backbone.name, inner
