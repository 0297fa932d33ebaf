"""Frozen features: their extraction by a backbone, and their files, named by a hash of all inputs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from infra.arrays import Float32, UInt64
from infra.errors import UserError, require
from infra.log import say
from infra.storage.files import read_regular, write_atomic
from ssl_core.views.batches import WholeImage
from ssl_core.views.parameters import Fit

RAW_PIXELS_PX: Final = 32
_VERSION: Final = 1  # of the hash and the files; raise it when extraction computes something else


@dataclass(frozen=True)
class Preprocessing:
    """Input of a backbone: the whole image, made square, (gray level / 255 - mean) / std.

    The hash of the features covers the text of this record, so renaming a field extracts everything again.

    Attributes:
        size_px: width and height of the input
        mean: pixel mean of the pretraining, on the scale 0 to 1
        std: pixel standard deviation of the pretraining, likewise
        executor: name of the view executor
        fit: how an image that is not square becomes a square
        mirrored: whether features are the means of those of the image and of its mirror image
        antialias: as in the views of the pretraining; not in the text, which has no such field in older hashes
    """

    size_px: int
    mean: float
    std: float
    executor: str
    fit: Fit
    mirrored: bool
    antialias: bool = field(default=False, repr=False)

    @property
    def views(self) -> WholeImage:
        """The views whose features are averaged."""
        return WholeImage(self.size_px, self.fit, self.mirrored, self.antialias)


class RawPixels(nn.Module):
    """The control without a network: the input averaged down to 32 x 32 pixels, (N, 1, H, W) -> (N, 1024)."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pixels of a batch of images."""
        return nn.functional.adaptive_avg_pool2d(images, RAW_PIXELS_PX).flatten(1)


@torch.inference_mode()
def extract(backbone: nn.Module, batches: Iterable[Sequence[Tensor]], device: torch.device) -> Float32:
    """Run a frozen backbone in evaluation mode.

    Args:
        backbone: maps images (n, 1, size, size) to features (n, D)
        batches: for each batch of n images, one tensor (n, 1, size, size) per view
        device: device on which the backbone runs

    Returns:
        Features (N, D) of all images, each the mean over the views of the image.
    """
    backbone = backbone.to(device).eval()
    parts = [
        torch.stack([backbone(view.to(device)).float() for view in views]).mean(dim=0).cpu().numpy()
        for views in batches
    ]
    return np.concatenate(parts)


def fingerprint(backbone: nn.Module, data_identity: str, preprocessing: Preprocessing) -> str:
    """Hash everything that features depend on: architecture, weights, packed images, preprocessing."""
    antialiased = " antialiased" * preprocessing.antialias
    digest = hashlib.sha256(f"{_VERSION}\n{backbone}\n{data_identity}\n{preprocessing}{antialiased}".encode())
    for name, value in backbone.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store(path: Path, values: npt.NDArray[Any], ids: UInt64) -> None:
    """Write values (N, ...) with the ids (N,) of their samples as safetensors, atomically."""
    write_atomic(path, safetensors.numpy.save({"features": values, "sample": ids}))


def load_stored(
    path: Path, ids: UInt64, dtype: type[np.generic] = np.float32, dimensions: int = 1
) -> npt.NDArray[Any] | None:
    """Return the stored values of exactly these samples.

    Args:
        path: the file that `store` wrote, or that somebody else put there
        ids: identities (N,) of the samples
        dtype: type of the values
        dimensions: number of their dimensions

    Returns:
        The values (N, ...), None if there is no such file or it belongs to other samples. A damaged file counts as
        missing, with a warning, so that the caller writes it again.
    """
    try:
        tensors = safetensors.numpy.load(read_regular(path))
        values, samples = tensors["features"], tensors["sample"]
        fits = values.dtype == dtype and (values.ndim, len(values)) == (dimensions, len(samples))
        require(fits, "its features have another type or shape")
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, UserError, KeyError, TypeError) as error:
        say(f"warning: {path} cannot be read ({error}); computing its content again")
        return None
    return values if np.array_equal(samples, ids) else None


def require_finite(values: Float32, name: str) -> None:
    """Raise UserError, with the features' name, unless all features (N, D) are finite."""
    damaged = int((~np.isfinite(values)).any(axis=1).sum())
    if damaged:
        raise UserError(
            f"the features of {name} are not finite for {damaged} of {len(values)} images; its training diverged or "
            "its weights are damaged: choose other checkpoints"
        )
