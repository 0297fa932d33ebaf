"""How deep each parameter of a network lies, counted in blocks: fine-tuning may learn slower toward the image."""

import re
from typing import Final

from ssl_core.model.architectures import Network

_BLOCKS: Final = {  # the name of a block, by the family of the network
    "resnet": r"layer\d+\.\d+\.",
    "densenet": r"features\.denseblock\d+\.denselayer\d+\.",
    "convnext": r"features\.[1357]\.\d+\.",
    "vision_transformer": r"encoder\.layers\.encoder_layer_\d+\.",
}


def block_depths(network: Network, what: str) -> dict[str, int]:
    """Return the depth of each parameter, by its name in the network's module.

    The stem has depth 0 and the first block depth 1. What lies between two blocks or behind the last one counts with
    the block before it. The blocks of a timm network are those of its `group_matcher`.

    Args:
        network: the network
        what: the option with its value that needs the blocks, for the message

    Raises:
        UserError: if a timm network does not name its blocks
    """
    if network.family == "timm":
        from ssl_core.model import timm_networks  # noqa: PLC0415

        return timm_networks.block_depths(network, what)
    depths: dict[str, int] = {}
    block, depth = "", 0
    for name, _ in network.module.named_parameters():  # in the order in which an image passes them
        found = re.match(_BLOCKS[network.family], name)
        if found and found.group() != block:
            block, depth = found.group(), depth + 1
        depths[name] = depth
    return depths
