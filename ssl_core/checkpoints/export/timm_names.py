"""The network of timm that computes what a network of torchvision computes, and its names for the same weights.

ResNets and DenseNets have equal names in both libraries. The names of ConvNeXts and ViTs differ; their layers are the
same.
"""

import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from ssl_core.model.architectures import TIMM, Network

SUBFOLDER: Final = "timm"  # of an export, for weights whose names differ from those of the file beside it
_VITS: Final = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}
_VIT_NAMES: Final = {
    r"class_token": "cls_token",
    r"conv_proj": "patch_embed.proj",
    r"encoder\.pos_embedding": "pos_embed",
    r"encoder\.layers\.encoder_layer_(\d+)": r"blocks.\1",
    r"encoder\.ln\.": "norm.",
    r"\.ln_([12])\.": r".norm\1.",
    r"self_attention\.in_proj_": "attn.qkv.",
    r"self_attention\.out_proj": "attn.proj",
    r"mlp\.0": "mlp.fc1",
    r"mlp\.3": "mlp.fc2",
}
_CONVNEXT_NAMES: Final = {
    r"features\.0\.": "stem.",
    r"classifier\.0": "head.norm",
    r"\.layer_scale": ".gamma",
    r"\.block\.0": ".conv_dw",
    r"\.block\.2": ".norm",
    r"\.block\.3": ".mlp.fc1",
    r"\.block\.5": ".mlp.fc2",
}
_CONVNEXT_STAGE: Final = re.compile(r"features\.(\d+)\.")  # odd: the blocks of a stage; even: what leads to the next


def timm_name(network: str) -> str:
    """Return timm's name, as `timm/NAME`, of a network by its name in torchvision or as `timm/NAME`."""
    return network if network.startswith(TIMM) else TIMM + _VITS.get(network, network)


def in_timm_names(network: Network, shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network by their names in timm.

    Args:
        network: a network of torchvision or timm
        shapes: the state of timm's network, whose shapes the weights get

    Raises:
        KeyError: if a weight has no place there
    """
    state = {_timm_weight(network.family, name): value for name, value in network.module.state_dict().items()}
    return {name: value.reshape(shapes[name].shape) for name, value in state.items()}


def _timm_weight(family: str, name: str) -> str:
    if family == "vision_transformer":
        return _replaced(name, _VIT_NAMES)
    if family == "convnext":
        return _CONVNEXT_STAGE.sub(_convnext_stage, _replaced(name, _CONVNEXT_NAMES))
    return name


def _replaced(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, text in patterns.items():
        name = re.sub(pattern, text, name)
    return name


def _convnext_stage(match: re.Match[str]) -> str:
    stage, is_blocks = divmod(int(match.group(1)) - 1, 2)[0], int(match.group(1)) % 2 == 1
    return f"stages.{stage}.blocks." if is_blocks else f"stages.{stage + 1}.downsample."
