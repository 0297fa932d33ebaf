"""Networks of timm as backbones; import this module only after `require_extra("timm", ...)`."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from infra.errors import UserError, require
from ssl_core.model.architectures import TIMM, Network, is_square, require_whole_patches


def require_architecture(architecture: str, what: str) -> None:
    """Raise UserError, with the option and value `what`, unless timm has this architecture."""
    name, _, tag = architecture.partition(".")
    require(not tag, f"{what} names weights, not only a network; use {TIMM}{name}")
    if not timm.is_model(name):
        near = " or ".join(f"{TIMM}{other}" for other in get_close_matches(name, timm.list_models(), 3))
        hint = f"did you mean {near}?" if near else "timm.list_models() lists what there is"
        raise UserError(f"{what} is no network of timm {timm.__version__}; {hint}")


def build(name: str, size_px: int, channels: int) -> Network:
    """Build a network with random weights; arguments and errors are those of `build_network`."""
    architecture = name.removeprefix(TIMM)
    published = timm.get_pretrained_cfg(architecture)
    fixed_size = {"img_size": size_px} if published.fixed_input_size else {}
    try:
        module = timm.create_model(architecture, pretrained=False, num_classes=0, in_chans=channels, **fixed_size)
        _turn_draws_off(module)
        features = _features(module, channels, size_px)
    except Exception as error:  # each of a thousand networks has its own way to fail
        reason = " ".join(str(error).split())
        raise UserError(
            f"backbone {name!r} does not take {channels} channel(s) of {size_px} px ({reason}); try the "
            f"{published.input_size[1]} px for which it was published, or another network"
        ) from error
    patch_px = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if isinstance(patch_px, tuple):  # timm leaves out what patches do not cover
        require_whole_patches(name, size_px, patch_px[0])
    require(features.dim() == 2, f"backbone {name!r} gives no vector for an image; choose another network")
    stems, classifiers = _names(published.first_conv), _names(published.classifier)
    return Network(name, module, "timm", features.shape[1], stems, classifiers)


def _features(module: nn.Module, channels: int, size_px: int) -> Tensor:
    features: Tensor = module.eval()(torch.zeros(1, channels, size_px, size_px))
    module.train()
    return features


def published(name: str, what: str) -> tuple[Any, tuple[str, ...]]:
    """Return timm's record of published weights, and the names that their file may have on the hub.

    Raises:
        UserError: with the option and value `what`, if there are no such weights
    """
    architecture, _, tag = name.partition(".")
    require_architecture(architecture, what)
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    require(
        not tag or tag in tags,
        f"{what} names no weights of {TIMM}{architecture}; timm has {', '.join(tags) or 'none'}",
    )
    record = timm.get_pretrained_cfg(name)
    return record, (record.hf_hub_filename,) if record.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")


def _turn_draws_off(module: nn.Module) -> None:
    """Turn off dropout, stochastic depth and the like: a draw of Sternum has a key, and torch's generator none."""
    for layer in module.modules():
        for rate in ("p", "drop_prob", "prob"):
            if "Drop" in type(layer).__name__ and isinstance(getattr(layer, rate, None), float):
                setattr(layer, rate, 0.0)


def require_gradients(network: Network, size_px: int) -> None:
    """Refuse a network with parameters that its features do not depend on: their gradients would be missing."""
    names, parameters = zip(*network.module.named_parameters(), strict=True)
    features = _features(network.module, 1, size_px)
    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    unused = [parameter for parameter, gradient in zip(names, gradients, strict=True) if gradient is None]
    require(
        not unused,
        f"the features of backbone {network.name!r} do not depend on {len(unused)} of its parameters, such as "
        f"{', '.join(unused[:2])}, so these cannot be trained; choose another network",
    )


def resampled_positions(module: Any, name: str, values: Tensor) -> Tensor:
    """Resample a position embedding; arguments and result are those of `architectures.resampled_positions`."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    first = 0 if getattr(module, "no_embed_class", False) else getattr(module, "num_prefix_tokens", 0)
    if name != "pos_embed" or grid is None or values.dim() != 3 or not is_square(values.shape[1] - first):
        return values
    return timm.layers.resample_abs_pos_embed(values, list(grid), num_prefix_tokens=first)


def block_depths(network: Network, what: str) -> dict[str, int]:
    """Return the depth of each parameter; arguments and errors are those of `depth.block_depths`."""
    module: Any = network.module
    require(
        hasattr(module, "group_matcher"),
        f"{what} needs to know the blocks of the network, but timm does not name those of {network.name}; leave it out",
    )
    depths: dict[str, int] = timm.models.group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    return depths


def _names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
