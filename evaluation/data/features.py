"""Frozen features of every sample of a dataset, extracted once and kept under a hash of all they depend on."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from infra.errors import UserError
from infra.files import write_atomic
from infra.log import say

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]

RAW_PIXELS_PX: Final = 32
_VERSION: Final = 1  # of what is hashed and stored; raise it when extraction changes what it computes


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a backbone's input: whole, size_px square, (gray level / 255 - mean) / std."""

    size_px: int
    mean: float
    std: float
    executor: str


class RawPixels(nn.Module):
    """The control without a network: the input, averaged down to 32 x 32 pixels: (N, 1, H, W) -> (N, 1024)."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pixels of a batch of images."""
        return nn.functional.adaptive_avg_pool2d(images, RAW_PIXELS_PX).flatten(1)


@torch.inference_mode()
def extract(backbone: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Floats:
    """Return a frozen backbone's features (N, D) of batches of images (n, 1, size, size), in evaluation mode."""
    backbone = backbone.to(device).eval()
    parts = [backbone(images.to(device)).float().cpu().numpy() for images in batches]
    return np.concatenate(parts)


def fingerprint(backbone: nn.Module, data_identity: str, preprocessing: Preprocessing) -> str:
    """Hash everything that features depend on: architecture, weights, packed images, preprocessing."""
    digest = hashlib.sha256(f"{_VERSION}\n{backbone}\n{data_identity}\n{preprocessing}".encode())
    for name, value in backbone.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store(path: Path, values: npt.NDArray[Any], ids: Hashes) -> None:
    """Write features (N, D), or other values (N,), with the samples' ids (N,) as safetensors, atomically."""
    content: bytes = safetensors.numpy.save({"features": values, "sample": ids})
    write_atomic(path, content)


def load_stored(path: Path, ids: Hashes) -> npt.NDArray[Any] | None:
    """Return what is stored for exactly these samples, None where there is nothing.

    A damaged file is named and counts as none, so that it is made again.
    """
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        say(f"warning: {path} cannot be read ({error}); making it again")
        return None
    values = tensors["features"]
    return values if np.array_equal(tensors["sample"], ids) else None


def require_finite(values: Floats, what: str) -> None:
    """Raise UserError when a feature is not a finite number."""
    bad = int((~np.isfinite(values)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"the features of {what} are not finite for {bad} of {len(values)} images; its training diverged or its "
            "weights are damaged: choose other checkpoints"
        )
