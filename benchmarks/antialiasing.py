"""What antialiased views lose and keep: aliasing and blur, by how far an image is reduced before it is warped.

Each image is split into the frequencies that a view can show and those above. A view of the upper part alone is
aliasing. A view of the lower part is compared with the same part sampled from its trigonometric interpolation: the
difference is blur. Both are given in percent of the variance of that ideal view, and the distance of the whole view
from it in gray levels. Centers and rotations are drawn.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.common import table
from ssl_core.views.parameters import Crop, matrix_and_size
from ssl_core.views.torchvision import reduce, warp

SHRINKS: Final = (1.4, 1.6, 2.0, 2.6, 3.2)
LIMITS: Final = (None, 1.0, 1.25, 1.5)  # the image is reduced until the map shrinks it by this; None for no reduction
_FINER: Final = 4  # how much finer than its pixels the ideal image is computed
_BORDER_PX: Final = 8  # left out, because a Fourier transform joins opposite borders

Image2d = npt.NDArray[np.float64]


class Loss(NamedTuple):
    """Aliasing and blur in percent of the variance, and the root mean square of the difference in gray levels."""

    aliased: float
    blurred: float
    distance: float


def measure(image: Image2d, shrink: float, size_px: int, random: np.random.Generator) -> list[Loss]:
    """Return the loss by each of LIMITS for one drawn view of a gray image (H, W)."""
    height, width = image.shape
    side = np.full(1, shrink * size_px)
    center_x, center_y = (np.array([length / 2 + random.uniform(-4, 4)]) for length in (width, height))
    crop = Crop(center_x, center_y, side, side, np.ones(1), random.uniform(-10, 10, 1))
    low = _below(image, 0.5 / shrink)
    finer = crop._replace(
        center_x=crop.center_x * _FINER - (_FINER - 1) / 2,  # the first pixels of both lie at the same place
        center_y=crop.center_y * _FINER - (_FINER - 1) / 2,
        width=side * _FINER,
        height=side * _FINER,
    )
    ideal = _view(_interpolated(low), finer, size_px, None)
    variance = ideal.var()
    return [
        Loss(
            100 * np.square(_view(image - low, crop, size_px, limit)).mean() / variance,
            100 * np.square(_view(low, crop, size_px, limit) - ideal).mean() / variance,
            np.sqrt(np.square(_view(image, crop, size_px, limit) - ideal).mean()),
        )
        for limit in LIMITS
    ]


def _view(image: Image2d, crop: Crop, size_px: int, limit: float | None) -> npt.NDArray[Any]:
    sizes = [np.array([float(length)]) for length in image.shape]
    matrix, reduced = matrix_and_size(size_px, crop, *sizes, antialias=limit is not None, most_shrink=limit or 1.0)
    pixels = image.astype(np.float32)
    if reduced[0].any():
        pixels = reduce(pixels, *reduced[0].astype(int).tolist())
    return warp(torch.from_numpy(pixels)[None], matrix, size_px)[
        0, 0, _BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX
    ].numpy()


def _below(image: Image2d, most: float) -> Image2d:
    """Return the frequencies of less than `most` periods a pixel."""
    rows, columns = (np.abs(np.fft.fftfreq(length)) < most for length in image.shape)
    return np.fft.ifft2(np.fft.fft2(image) * rows[:, None] * columns).real


def _interpolated(image: Image2d) -> Image2d:
    """Return the trigonometric interpolation; pixel p lies at p / _FINER."""
    before = [(length * _FINER - length) // 2 for length in image.shape]
    around = [(start, length * (_FINER - 1) - start) for start, length in zip(before, image.shape, strict=True)]
    spectrum = np.pad(np.fft.fftshift(np.fft.fft2(image)), around)
    return np.fft.ifft2(np.fft.ifftshift(spectrum)).real * _FINER**2


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of gray PNG files of at least 320 px")
    parser.add_argument("--count", type=int, default=16, help="images, evenly spaced")
    parser.add_argument("--size_px", type=int, default=96, help="width and height of a view")
    options = parser.parse_args(arguments)
    paths = sorted(options.images.glob("*.png"))
    images = [
        np.asarray(Image.open(path).convert("L"), np.float64) for path in paths[:: max(1, len(paths) // options.count)]
    ][: options.count]
    random = np.random.default_rng(0)
    rows = []
    for shrink in SHRINKS:
        losses = np.mean([measure(image, shrink, options.size_px, random) for image in images], axis=0)
        rows.append([f"{shrink}", *(f"{aliased:.2f}, {blurred:.2f}, {far:.1f}" for aliased, blurred, far in losses)])
    header = ["shrunk by", "no reduction", *(f"until {limit}" for limit in LIMITS[1:])]
    print(f"aliased %, blurred %, distance in gray levels; {len(images)} images\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
