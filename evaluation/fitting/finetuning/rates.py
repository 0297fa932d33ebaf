"""The optimizer of fine-tuning, whose learning rate may fall from block to block toward the image.

Layer-wise decay of the learning rate: Clark et al. 2020 (ELECTRA), Bao et al. 2021 (BEiT).
"""

from collections.abc import Mapping
from typing import Any, Final

import torch

from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.network import FinetunedNetwork
from infra.configuration.options import setting
from ssl_core.model.architectures import build_network
from ssl_core.model.depth import block_depths
from ssl_core.model.encoder import Backbone

_FACTOR: Final = "rate_factor"


def build_adamw(network: FinetunedNetwork, config: FinetuneConfig) -> torch.optim.AdamW:
    """Return the optimizer; its biases and norms, the parameters with one dimension, have no weight decay."""
    factors = rate_factors(network, config)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        of_group = factors[name], config.weight_decay if parameter.dim() > 1 else 0.0
        group = groups.setdefault(of_group, {"params": [], _FACTOR: of_group[0], "weight_decay": of_group[1]})
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=config.learning_rate, fused=True)


def set_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Set the learning rate of the head, and in proportion that of every block."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_FACTOR]


def rate_factors(network: FinetunedNetwork, config: FinetuneConfig) -> Mapping[str, float]:
    """Return the factor of each parameter's learning rate: layer_decay to the power of its distance from the head.

    The head has the factor 1, the last block `layer_decay`, and so on down to the stem.
    """
    names = [name for name, _ in network.named_parameters()]
    if config.layer_decay == 1:
        return dict.fromkeys(names, 1.0)
    backbone = network.backbone
    assert isinstance(backbone, Backbone), "only a checkpoint's backbone is fine-tuned"
    prefix = f"backbone.{backbone.network.family}."
    of_blocks = block_depths(backbone.network, setting(config, "layer_decay"))
    depths = {f"{prefix}{name}": depth for name, depth in of_blocks.items()}
    head = max(depths.values()) + 1
    return {name: config.layer_decay ** (head - depths.get(name, head)) for name in names}


def require_blocks(config: FinetuneConfig, backbone: str, size_px: int) -> None:
    """Refuse a decay from block to block, before anything is computed, for a network whose blocks are unknown.

    Args:
        config: options
        backbone: name of the network
        size_px: sides of the images

    Raises:
        UserError: if its blocks are unknown
    """
    if config.epochs and config.layer_decay != 1:
        block_depths(build_network(backbone, size_px), setting(config, "layer_decay"))
