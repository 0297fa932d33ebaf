"""What executors apply to make a view: numbers for each image, and the steps that all views of a task share.

A view is made in this order: reduce the image (`Steps.antialias`), warp it, blur the view, raise it to `gamma`, change
its contrast and its brightness, normalize, erase a rectangle.

Coordinates are continuous: pixel (column, row) covers [column, column + 1) x [row, row + 1), so its center is at
(column + 0.5, row + 0.5). Crop, resize, flip and rotation form one affine map, so a pixel is interpolated only once
(bilinear; outside the image, its border is repeated).

A map that shrinks alone would alias. So with `antialias` an image of which a view shrinks a side by more than
MOST_SHRINK is reduced first, to the size at which the map shrinks that side by MOST_SHRINK. A new pixel is the mean of
the old ones with weights that fall linearly to 0 at a distance of one new pixel, as in the antialiased bilinear resize
of PIL, torchvision and DALI; outside the image, its border is repeated, as in DALI.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.arrays import Float32, Float64

# How an image that is not square becomes a square view: its longer side fits and the border is repeated beside it
# (pad), each side is scaled alone (squash), or the longer side is cut about the center (square).
Fit = Literal["pad", "squash", "square"]

GRAY: Final = 0.5  # of the scale 0 to 1; contrast pivots on it, the same for every image, or on the view's mean
# Aliasing is then five- to tenfold less than without reduction, and the image least blurred; docs/design.md has the
# measurement. It also joins unreduced and reduced crops without a jump.
MOST_SHRINK: Final = 1.5


class Steps(NamedTuple):
    """The optional steps of all views of a task; without them, contrast and brightness are one linear map.

    Attributes:
        antialias: whether images are reduced to `ViewParameters.reduced_px` before the map
        contrast_about_mean: whether contrast pivots on the mean of the view, as torchvision's `adjust_contrast` does,
            instead of on GRAY
        clip: whether values are clipped to [0, 1] after the contrast and again after the brightness, as in torchvision
        gamma: whether values are raised to `ViewParameters.gamma`
        erase: whether rectangles are erased
    """

    antialias: bool = False
    contrast_about_mean: bool = False
    clip: bool = False
    gamma: bool = False
    erase: bool = False

    @property
    def are_linear(self) -> bool:
        """Whether `gain_and_offset` describes all changes of gray levels."""
        return not (self.contrast_about_mean or self.clip or self.gamma)


class ViewParameters(NamedTuple):
    """One view of each of N images, as executors apply it; pixels are whole numbers.

    Attributes:
        matrix: (N, 2, 3), maps a point (x, y, 1) of the view to the point of the (reduced) image that it shows
        blur_sigma_px: (N,), 0 for no blur; the kernel ends at ceil(3 sigma), the border is mirrored about its pixels
        brightness: (N,); a value v from 0 to 1 becomes brightness * (pivot + contrast * (v - pivot))
        contrast: (N,)
        reduced_px: (N, 2) height and width to which the image is reduced first, 0 x 0 for no reduction
        gamma: (N,) exponent of the values from 0 to 1
        erased_px: (N, 4) left, top, width and height of a rectangle of the view that becomes 0, the mean gray level;
            0 x 0 for none
    """

    matrix: Float32
    blur_sigma_px: Float32
    brightness: Float32
    contrast: Float32
    reduced_px: Float32
    gamma: Float32
    erased_px: Float32

    def gain_and_offset(self, mean: float, std: float) -> tuple[Float32, Float32]:
        """Combine jitter and normalization: a gray level g from 0 to 255 becomes gain * g + offset, (N,) each."""
        gain = self.brightness * self.contrast / (255 * std)
        offset = (self.brightness * (1 - self.contrast) * GRAY - mean) / std
        return gain.astype(np.float32), offset.astype(np.float32)


class Crop(NamedTuple):
    """The part of each of N images that a view shows; every field is (N,).

    Attributes:
        center_x: in pixels of the image
        center_y: likewise
        width: likewise
        height: likewise
        mirror: -1 where the image is flipped horizontally, else 1
        degrees: counter-clockwise rotation of the image after the flip
    """

    center_x: Float64
    center_y: Float64
    width: Float64
    height: Float64
    mirror: Float64
    degrees: Float64


def matrix_and_size(
    size_px: int,
    crop: Crop,
    heights: Float64,
    widths: Float64,
    *,
    antialias: bool,
    most_shrink: float = MOST_SHRINK,
) -> tuple[Float32, Float32]:
    """Return `matrix` and `reduced_px` of the views of `size_px` that show these crops of N images.

    Args:
        size_px: width and height of a view
        crop: what the views show
        heights: (N,) of the images
        widths: (N,) of the images
        antialias: whether to reduce the images that the map would shrink by more than `most_shrink`
        most_shrink: MOST_SHRINK, but in benchmarks
    """
    sizes = np.stack([heights, widths], axis=1)  # (N, 2)
    matrix = _matrix(size_px, crop)
    if not antialias:
        return matrix.astype(np.float32), np.zeros_like(sizes, np.float32)
    shrink = np.stack([crop.height, crop.width], axis=1) / size_px
    reduced = np.maximum(1, np.rint(sizes * np.minimum(1, most_shrink / shrink)))
    is_reduced = (reduced < sizes).any(axis=1, keepdims=True)
    return (matrix * (reduced / sizes)[:, ::-1, None]).astype(np.float32), (reduced * is_reduced).astype(np.float32)


def _matrix(size_px: int, crop: Crop) -> Float64:
    """Compose the map from a view back to its image, (N, 2, 3): undo rotation, flip, resize and crop."""
    cos, sin = np.cos(np.deg2rad(crop.degrees)), np.sin(np.deg2rad(crop.degrees))
    scale_x, scale_y = crop.mirror * crop.width / size_px, crop.height / size_px
    linear = np.stack([np.stack([scale_x * cos, -scale_x * sin], -1), np.stack([scale_y * sin, scale_y * cos], -1)], 1)
    center = np.stack([crop.center_x, crop.center_y], -1)  # the view's center shows the crop's center
    shift = center - linear.sum(axis=2) * size_px / 2
    return np.concatenate([linear, shift[:, :, None]], axis=2)


def whole_image(
    size_px: int,
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
    fit: Fit,
    *,
    mirrored: bool = False,
    antialias: bool = False,
) -> ViewParameters:
    """Return the view that probing uses, without augmentation; all fits show a square image alike.

    Args:
        size_px: width and height of the view
        heights: (N,) of the images
        widths: (N,) of the images
        fit: how an image that is not square becomes a square
        mirrored: whether the image is flipped horizontally
        antialias: whether to reduce the images that the view would shrink by more than MOST_SHRINK
    """
    height, width = np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    crop_h, crop_w = height, width
    if fit != "squash":
        crop_h = crop_w = np.maximum(height, width) if fit == "pad" else np.minimum(height, width)
    ones = np.ones(len(height))
    crop = Crop(width / 2, height / 2, crop_w, crop_h, -ones if mirrored else ones, 0 * ones)
    matrix, reduced_px = matrix_and_size(size_px, crop, height, width, antialias=antialias)
    plain = ones.astype(np.float32)
    nothing = np.zeros((len(height), 4), np.float32)
    return ViewParameters(matrix, 0 * plain, plain, plain, reduced_px, plain, nothing)
