"""A network for images of one or three channels, with the same features for a gray image."""

from torch import Tensor

from infra.errors import require
from ssl_core.model.architectures import Network, build_network


def with_channels(network: Network, size_px: int, channels: int, what: str) -> Network:
    """Return a network of one channel as a network of one or three channels, in evaluation mode.

    Three equal channels give the features that the one channel gives.

    Args:
        network: a network for images of one channel
        size_px: sides of the images
        channels: 1 or 3
        what: the option with its value, for messages

    Raises:
        UserError: if the network's first layer does not see the image's channels alone
    """
    if channels == 1:
        network.module.eval()
        return network
    state = network.module.state_dict()
    for stem in network.stems:
        name = f"{stem}.weight"
        is_plain = name in state and state[name].dim() == 4 and state[name].shape[1] == 1
        require(is_plain, f"{what}: the layer {stem} of {network.name} is no convolution of one channel; use 1")
        state[name] = _three_channels(state[name])
    wide = build_network(network.name, size_px, channels)
    wide.module.load_state_dict(state)
    wide.module.eval()
    return wide


def _three_channels(weight: Tensor) -> Tensor:
    """Spread a stem's weight (out, 1, k, k) evenly over three input channels: (out, 3, k, k)."""
    return weight.repeat(1, 3, 1, 1) / 3
