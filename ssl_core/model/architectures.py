"""Networks that can serve as a backbone: torchvision's by their names there, timm's as `timm/NAME`.

A network comes without its classifier, so its output is what the classifier would see, and with a stem for the wanted
number of channels. Its parameters have the names of its library.
"""

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from infra.errors import require
from infra.extras import require_extra

TIMM: Final = "timm/"
USUAL_SIZE_PX: Final = 224


@dataclass(frozen=True)
class Network:
    """A network without its classifier.

    Attributes:
        name: name of a torchvision network, or `timm/NAME`
        module: (N, channels, H, W) -> (N, feature_size)
        family: resnet, densenet, convnext, vision_transformer, or timm
        feature_size: number of features of an image
        stems: names of the convolutions that see the image; nearly always one
        classifiers: names of the classifiers that were left out
    """

    name: str
    module: nn.Module
    family: str
    feature_size: int
    stems: tuple[str, ...]
    classifiers: tuple[str, ...]


def backbone_names() -> list[str]:
    """Return the names of torchvision's ResNets, DenseNets, ConvNeXts and ViTs."""
    from ssl_core.model import torchvision_networks  # noqa: PLC0415

    return torchvision_networks.names()


def family_of(name: str) -> str:
    """Return the family of a network of torchvision: the module there that defines it."""
    from ssl_core.model import torchvision_networks  # noqa: PLC0415

    return torchvision_networks.family_of(name)


def require_backbone(name: str, what: str) -> None:
    """Check the name of a network.

    Args:
        name: the name
        what: the option with its value, for the message

    Raises:
        UserError: if there is no such network, or timm, which has it, is not installed
    """
    if name.startswith(TIMM):
        require_extra("timm", what, instead="take a network of torchvision, such as resnet50")
        from ssl_core.model import timm_networks  # noqa: PLC0415

        timm_networks.require_architecture(name.removeprefix(TIMM), what)
    else:
        known = backbone_names()
        require(name in known, f"{what} must be one of {', '.join(known)}, or {TIMM}NAME for a network of timm")


def build_network(name: str, size_px: int = USUAL_SIZE_PX, channels: int = 1) -> Network:
    """Build a network with random weights, drawn from torch's global generator.

    Args:
        name: name of a torchvision network, or `timm/NAME`
        size_px: sides of the images; a network whose position embedding depends on it takes no other size
        channels: of the images, 1 or 3

    Raises:
        UserError: if there is no such network, or it does not take images of this size
    """
    require_backbone(name, f"backbone {name!r}")
    if name.startswith(TIMM):
        from ssl_core.model import timm_networks  # noqa: PLC0415

        return timm_networks.build(name, size_px, channels)
    from ssl_core.model import torchvision_networks  # noqa: PLC0415

    return torchvision_networks.build(name, size_px, channels)


def require_whole_patches(name: str, size_px: int, patch_px: int) -> None:
    """Raise UserError unless a network that cuts images into patches can cut images of this size."""
    smaller = max(size_px // patch_px, 1) * patch_px
    require(
        size_px % patch_px == 0,
        f"backbone {name!r} cuts images into patches of {patch_px} px, which do not divide views of {size_px} px; "
        f"try {smaller} or {smaller + patch_px} px",
    )


def one_channel(weight: Tensor) -> Tensor:
    """Sum a stem's weight (out, 3, k, k) over its input channels: (out, 1, k, k).

    The result responds to a gray image as the original does to the same image in all three channels.
    """
    return weight.sum(dim=1, keepdim=True)


def require_trainable(network: Network, size_px: int) -> None:
    """Check that a network can be pretrained.

    Raises:
        UserError: if a layer joins batch norm with other work, which the layer over the global batch would not do, or
            if the features do not depend on a parameter
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = (layer for layer in network.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    joined = next((type(layer).__name__ for layer in norms if type(layer) not in plain), None)
    require(
        joined is None,
        f"backbone {network.name!r} joins batch norm and other work in one layer ({joined}), which Sternum cannot "
        "compute over the global batch; choose another network, such as resnet50, densenet121 or timm/convnext_tiny",
    )
    if network.family == "timm":
        from ssl_core.model import timm_networks  # noqa: PLC0415

        timm_networks.require_gradients(network, size_px)


def resampled_positions(network: Network, name: str, values: Tensor) -> Tensor:
    """Resample the position embedding (1, tokens, D) of a ViT for images of another size.

    Returns:
        The embedding for the positions of `network`; `values` themselves if the parameter `name` is another one, or if
        these are not positions on a square.
    """
    module = network.module
    if network.family == "timm":
        from ssl_core.model import timm_networks  # noqa: PLC0415

        return timm_networks.resampled_positions(module, name, values)
    from ssl_core.model import torchvision_networks  # noqa: PLC0415

    return torchvision_networks.resampled_positions(module, name, values)


def is_square(number: int) -> bool:
    """Return whether a number is a positive square."""
    return number > 0 and math.isqrt(number) ** 2 == number
