"""Weights that torchvision and timm publish, by name, from the caches of this machine; nothing is downloaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from torch.hub import HASH_REGEX

from infra.errors import UserError, require
from infra.extras import require_extra
from infra.files import sha256_file
from ssl_core.model.architectures import TIMM

TORCHVISION: Final = "torchvision/"


@dataclass(frozen=True)
class Published:
    """Published weights and the input that they were trained on.

    Attributes:
        path: the file in the cache
        network: name of the network, as `build_network` takes it
        size_px: sides of its images
        mean: mean of each of the three channels, on the scale 0 to 1
        std: standard deviation, likewise
    """

    path: Path
    network: str
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_published_name(name: str) -> bool:
    """Return whether a name means published weights and not a path."""
    return name.startswith((TORCHVISION, TIMM))


def published_weights(name: str, what: str) -> Published:
    """Find published weights in the cache.

    Args:
        name: `torchvision/NETWORK.WEIGHTS` or `timm/NETWORK.WEIGHTS`; without WEIGHTS the library's default
        what: the option with its value, for messages

    Raises:
        UserError: if there are no such weights, they are not in the cache, or their file there is damaged
    """
    if name.startswith(TORCHVISION):
        return _of_torchvision(name.removeprefix(TORCHVISION), what)
    require_extra("timm", what, instead="name a file")
    from ssl_core.model import timm_networks  # noqa: PLC0415

    published, files = timm_networks.published(name.removeprefix(TIMM), what)
    return Published(
        _checked(_in_hub_cache(published, files, what), what),
        f"{TIMM}{published.architecture}",
        published.input_size[1],
        tuple(published.mean),
        tuple(published.std),
    )


def _of_torchvision(name: str, what: str) -> Published:
    network, _, tag = name.partition(".")
    try:
        known = torchvision.models.get_model_weights(network)
    except ValueError as error:
        raise UserError(f"{what} names no network of torchvision; use torchvision/resnet50 or the like") from error
    tags = sorted(known.__members__)
    require(
        (tag or "DEFAULT") in tags,
        f"{what} names no weights of torchvision's {network}; it has {', '.join(f'{network}.{each}' for each in tags)}",
    )
    weights = known[tag or "DEFAULT"]
    preset = weights.transforms()
    path = _checked(_in_torch_cache(weights.url, what), what)
    return Published(path, network, preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def _in_torch_cache(url: str, what: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    require(
        path.is_file(),
        f"{what} is not in torch's cache, and Sternum downloads no weights; save {url} as {path}, or name a file",
    )
    return path


def _in_hub_cache(published: Any, files: Sequence[str], what: str) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415

    if not published.hf_hub_id:
        require(bool(published.url), f"timm publishes no weights {what}; name a file")
        return _in_torch_cache(published.url, what)
    for file in files:
        path = try_to_load_from_cache(published.hf_hub_id, file)
        if isinstance(path, str):
            return Path(path)
    raise UserError(
        f"{what} is not in the cache {constants.HF_HUB_CACHE}, and Sternum downloads no weights; run "
        f"`hf download {published.hf_hub_id} {files[0]}` on a machine with a network, or name a file"
    )


def _checked(path: Path, what: str) -> Path:
    """Compare a file with the first digits of its SHA-256, if its name holds these, as torch's names do."""
    digits = HASH_REGEX.search(path.name)
    require(
        digits is None or sha256_file(path).startswith(digits.group(1)),
        f"{what} is damaged in the cache: the SHA-256 of {path} is not that in its name; delete it and download it "
        "again",
    )
    return path
