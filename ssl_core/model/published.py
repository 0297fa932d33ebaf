"""Weights that torchvision and timm publish, by name, from the caches of this machine; nothing is downloaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.hub import HASH_REGEX

from infra.errors import UserError, require
from infra.extras import require_extra
from infra.storage.files import sha256_file
from ssl_core.model.architectures import TIMM, USUAL_SIZE_PX

TORCHVISION: Final = "torchvision/"


class Input(NamedTuple):
    """Images that a network was published for: their sides, and mean and deviation of each channel, from 0 to 1."""

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Published:
    """Published weights and the images that they were trained on.

    Attributes:
        path: the file in the cache
        network: name of the network, as `build_network` takes it
        input: the images
    """

    path: Path
    network: str
    input: Input


# Of torchvision's and most other networks.
IMAGENET: Final = Input(USUAL_SIZE_PX, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def published_input(network: str) -> Input:
    """Return the input that a network is usually published for."""
    if not network.startswith(TIMM):
        return IMAGENET
    from ssl_core.model import timm_networks  # noqa: PLC0415

    record, _ = timm_networks.published(network.removeprefix(TIMM), network)
    return Input(record.input_size[1], tuple(record.mean), tuple(record.std))


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
    images = Input(published.input_size[1], tuple(published.mean), tuple(published.std))
    path = _checked(_in_hub_cache(published, files, what), what)
    return Published(path, f"{TIMM}{published.architecture}", images)


def _of_torchvision(name: str, what: str) -> Published:
    from torchvision import models  # noqa: PLC0415 (its import takes more than a second)

    network, _, tag = name.partition(".")
    try:
        known = models.get_model_weights(network)
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
    return Published(path, network, Input(preset.crop_size[0], tuple(preset.mean), tuple(preset.std)))


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
