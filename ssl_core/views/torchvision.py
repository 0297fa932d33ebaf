"""The views by torchvision and torch: the second executor, for machines without DALI and to hold DALI to its word."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from infra.ahead import read_ahead
from infra.errors import RunFailed
from ssl_core.views.spec import ViewParameters

_IN_FLIGHT: Final = 2


class TorchvisionExecutor:
    """Decodes on the CPU with `threads` threads; warps, blurs and jitters on `device`."""

    def __init__(
        self,
        size_px: int,
        views_count: int,
        mean: float,
        std: float,
        device: torch.device,
        threads: int,
        max_batch: int,
    ) -> None:
        self.size_px, self.views_count, self.mean, self.std = size_px, views_count, mean, std
        self.device, self.threads, self.max_batch = device, threads, max_batch

    def run(
        self, batches: Iterator[tuple[list[npt.NDArray[np.uint8]], Sequence[ViewParameters]]]
    ) -> Generator[list[torch.Tensor], None, None]:
        """Yield one tensor (n, 1, size, size) a view for each batch; two batches are in the making meanwhile.

        What `batches` raises is raised here, after the batches before it. Raises RunFailed for an image that does
        not decode.
        """
        with closing(read_ahead(self._make(batches), _IN_FLIGHT)) as made:
            yield from made

    def _make(
        self, batches: Iterator[tuple[list[npt.NDArray[np.uint8]], Sequence[ViewParameters]]]
    ) -> Iterator[list[torch.Tensor]]:
        with ThreadPoolExecutor(self.threads) as pool:
            for encoded, views in batches:
                matrices = np.stack([view.matrix for view in views], axis=1)  # (n, views, 2, 3)
                warped = torch.stack(list(pool.map(self._see, encoded, matrices)), dim=1)  # (views, n, 1, size, size)
                yield [self._finish(pixels, view) for pixels, view in zip(warped, views, strict=True)]

    def _see(self, encoded: npt.NDArray[np.uint8], matrices: npt.NDArray[np.float32]) -> torch.Tensor:
        return warp(_decode(encoded).to(self.device), matrices, self.size_px)

    def _finish(self, pixels: torch.Tensor, view: ViewParameters) -> torch.Tensor:
        gain, offset = (
            torch.from_numpy(values).to(self.device).view(-1, 1, 1, 1)
            for values in view.gain_and_offset(self.mean, self.std)
        )
        return blur(pixels, view.blur_sigma_px) * gain + offset


def _decode(encoded: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Decode to gray levels (1, H, W). By Pillow, since torchvision 0.29 announces the end of its own decoders."""
    try:
        with Image.open(BytesIO(encoded.data)) as image:
            if image.mode not in ("L", "RGB"):  # Pillow would clip 16 bits to 8 without a word
                raise RunFailed(f"an image has the mode {image.mode!r}, not 8-bit gray or RGB; pack the dataset again")
            return torch.from_numpy(np.array(image.convert("L"), np.float32))[None]
    except UnidentifiedImageError as error:
        raise RunFailed("Pillow could not tell the format of an image; pack the dataset again") from error
    except (OSError, SyntaxError) as error:
        raise RunFailed(f"Pillow could not decode an image: {error}; pack the dataset again") from error


def warp(image: torch.Tensor, matrices: npt.NDArray[np.float32], size_px: int) -> torch.Tensor:
    """See one image (1, H, W) through each of V matrices (V, 2, 3): (V, 1, size, size), in the image's units."""
    _, height, width = image.shape
    # From pixels to affine_grid's coordinates, where -1 and 1 are the outer borders of view and image.
    to_unit = np.array([[2 / width], [2 / height]])
    linear = matrices[:, :, :2].astype(np.float64) * (size_px / 2)
    shift = matrices[:, :, 2:] + linear.sum(axis=2, keepdims=True)
    theta = np.concatenate([linear * to_unit, shift * to_unit - 1], axis=2).astype(np.float32)
    shape = [len(matrices), 1, size_px, size_px]
    grid = F.affine_grid(torch.from_numpy(theta).to(image.device), shape, align_corners=False)
    stack = image.expand(len(matrices), 1, height, width)
    return F.grid_sample(stack, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blur(pixels: torch.Tensor, sigma_px: npt.NDArray[np.float32]) -> torch.Tensor:
    """Blur each of N images (N, 1, S, S) by its own sigma; sigma 0 leaves it as it is.

    The kernel reaches to ceil(3 sigma) and the border is mirrored about its pixels, as DALI does it.
    """
    chosen = np.flatnonzero(sigma_px > 0)
    if not len(chosen):
        return pixels
    sigma = sigma_px[chosen, None].astype(np.float64)
    reach = np.ceil(3 * sigma)
    most = int(reach.max())
    taps = np.arange(-most, most + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2) * (np.abs(taps) <= reach)  # (n, 2 * most + 1)
    kernel /= kernel.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(kernel.astype(np.float32)).to(pixels.device)
    rows = torch.from_numpy(chosen).to(pixels.device)
    n = len(chosen)
    x = F.pad(pixels[rows], (most, most, most, most), mode="reflect").transpose(0, 1)  # (1, n, S + 2 most, ...)
    x = F.conv2d(x, weights.view(n, 1, 1, -1), groups=n)
    x = F.conv2d(x, weights.view(n, 1, -1, 1), groups=n)
    return pixels.index_copy(0, rows, x.transpose(0, 1))
