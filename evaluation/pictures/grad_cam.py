"""Grad-CAM: which cells of a convolutional network's map raise a score (Selvaraju et al. 2017)."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LEAST_CELLS: Final = 4  # in height and in width; a coarser map says little about where


class GradCam:
    """Grad-CAM at the last stage of a network that has at least 4 x 4 cells.

    Attributes:
        method: what is computed, as a sentence
        cells: height and width of the maps
    """

    def __init__(self, backbone: nn.Module, name: str, layer: nn.Module, cells: tuple[int, int]) -> None:
        """Explain features (n, D) of a backbone by the output (n, C, *cells) of its layer `name`."""
        from captum.attr import LayerGradCam  # noqa: PLC0415 (its import takes 0.7 s, and most commands need no maps)

        self.method = f"Grad-CAM (Selvaraju et al. 2017) at {name}, through the backbone and the classifier."
        self.cells = cells
        self._grad_cam = LayerGradCam(_Evidence(backbone), layer)

    def evidence(self, images: Tensor, directions: Tensor) -> Tensor:
        """Return the evidence (n, h, w) in images (n, 1, size, size) for the scores: below 0 where it is against them.

        Args:
            images: normalized for the backbone
            directions: (n, D) the weights of the features in each image's score
        """
        maps = self._grad_cam.attribute(images, additional_forward_args=(directions,))
        assert isinstance(maps, Tensor), "one layer with one output has one map"
        return maps[:, 0].detach()


class _Evidence(nn.Module):
    """The score of each image, a weighted sum of its features: images (n, 1, size, size), weights (n, D) -> (n,)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, directions: Tensor) -> Tensor:
        """Return the scores without the intercept, which has no place in the image."""
        scores: Tensor = (self.backbone(images) * directions).sum(dim=1)
        return scores


def last_map_layer(
    backbone: nn.Module, stages: dict[str, nn.Module], images: Tensor
) -> tuple[str, nn.Module, tuple[int, int]] | None:
    """Return the layer to explain: its name, itself, and height and width of its map.

    It is the last stage whose map has at least 4 x 4 cells; of smaller images, the first stage.

    Args:
        backbone: the network
        stages: its stages by name, in order
        images: (n, 1, size, size) square images, of which only the size matters

    Returns:
        The layer; None if a stage gives no map (n, C, h, w).
    """
    shapes: dict[str, torch.Size] = {}

    def note(name: str, layer: nn.Module) -> RemovableHandle:
        return layer.register_forward_hook(lambda _, __, output: shapes.__setitem__(name, output.shape))

    handles = [note(name, layer) for name, layer in stages.items()]
    try:
        with torch.inference_mode():
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    # A square image has a square map; channels in the last place would show here.
    if not shapes or not all(len(shape) == 4 and shape[2] == shape[3] for shape in shapes.values()):
        return None
    fine = [name for name, shape in shapes.items() if shape[2] >= LEAST_CELLS]
    name = fine[-1] if fine else next(iter(shapes))
    return name, stages[name], (shapes[name][2], shapes[name][3])
