"""The stages of a network, each of which gives a map of the image at one resolution."""

from typing import Any, Final

from torch import nn

from ssl_core.model.architectures import TIMM, backbone_names, family_of

_STAGES: Final[dict[str, tuple[str, ...]]] = {  # names of the layers, by the family of torchvision's networks
    "resnet": ("layer1", "layer2", "layer3", "layer4"),
    # The last block ends with a norm, which belongs to its stage.
    "densenet": ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features"),
    "convnext": ("features.1", "features.3", "features.5", "features.7"),
    "vision_transformer": (),
}


def stages_of(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose output is that of a stage, by name, in the order in which an image passes them.

    Args:
        name: name of the network, as in `build_network`
        module: the network

    Returns:
        The layers; none for a network that is cut into no stages or whose library does not name them.
    """
    if name.startswith(TIMM):
        known: Any = getattr(module, "feature_info", [])
        names = [str(info["module"]) for info in known]
    elif name in backbone_names():
        names = list(_STAGES[family_of(name)])
    else:
        names = []
    layers = dict(module.named_modules())
    return {stage: layers[stage] for stage in names if stage in layers}
