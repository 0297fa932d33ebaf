"""Random views of an image: the ranges, the draw, and the parameters that executors apply.

Coordinates are continuous: pixel (column, row) covers [column, column + 1) x [row, row + 1), so its center is at
(column + 0.5, row + 0.5). Crop, resize, flip and rotation form one affine map, so a pixel is interpolated only once
(bilinear; outside the image, its border is repeated). Views are not antialiased: the shorter side of packed images
should be at most about twice `size_px`.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from infra import rng
from infra.arrays import Bool, Float32, Float64, Int64, Records
from infra.errors import UserError
from infra.options import key, require_between

# How an image that is not square becomes a square view: its longer side fits and the border is repeated beside it
# (pad), each side is scaled alone (squash), or the longer side is cut about the center (square).
Fit = Literal["pad", "squash", "square"]

VIEWS: Final = 2
GRAY: Final = 0.5  # contrast pivots on this value of the scale 0 to 1, the same for every image
_TRIES: Final = 10  # to draw a crop that fits, as in torchvision's RandomResizedCrop
_DRAWS: Final = 8 + 2 * _TRIES


@dataclass(frozen=True)
class ViewSpec:
    """Ranges of the five augmentations.

    Gazda et al. 2021 name resized crop, horizontal flip, rotation, Gaussian blur and brightness/contrast jitter
    without their ranges. These defaults are SimCLR's (Chen et al. 2020), milder where radiographs need it, as in
    MoCo-CXR (Sowrirajan et al. 2021): crops keep at least 30 % of the area, so that a view rarely misses both lungs,
    and rotations stay within 10 degrees.

    Args:
        size_px: width and height of a view, from 16 to 4096
        crop_area: smallest and largest area of a crop, as shares of the image's area, from 0.01 to 1
        crop_aspect: smallest and largest width / height of a crop, drawn evenly on the log scale
        flip_probability: probability of a horizontal flip
        rotation_degrees: largest rotation in either direction
        blur_probability: probability of a Gaussian blur
        blur_sigma_px: smallest and largest standard deviation of the blur, in pixels of the view
        brightness: largest change of brightness; the factor is between 1 - this and 1 + this
        contrast: largest change of contrast; the factor about mid-gray is between 1 - this and 1 + this
    """

    size_px: int = 224
    crop_area: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    rotation_degrees: float = 10.0
    blur_probability: float = 0.5
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    brightness: float = 0.3
    contrast: float = 0.3

    def __post_init__(self) -> None:
        require_between(self, "size_px", 16, 4096, "try 224")
        _require_range(self, "crop_area", 0.01, 1.0, "[0.3, 1.0]")
        _require_range(self, "crop_aspect", 0.1, 10.0, "[0.75, 1.333]")
        _require_range(self, "blur_sigma_px", 0.01, self.size_px / 8, "[0.1, 2.0]")
        most = {
            "flip_probability": 1,
            "rotation_degrees": 180,
            "blur_probability": 1,
            "brightness": 0.99,
            "contrast": 0.99,
        }
        for name, largest in most.items():
            require_between(self, name, 0, largest, f"try {getattr(type(self), name)}")


def _require_range(spec: ViewSpec, name: str, least: float, most: float, example: str) -> None:
    pair = getattr(spec, name)
    if len(pair) != 2 or not least <= pair[0] <= pair[1] <= most:
        rule = f"must be two numbers from {least:g} to {most:g}, the smaller first"
        raise UserError(f"{key(spec, name)}={list(pair)} {rule}; try {example}")


class ViewParameters(NamedTuple):
    """One view of each of N images, as executors apply it.

    Attributes:
        matrix: (N, 2, 3), maps a point (x, y, 1) of the view to the point of the image that it shows
        blur_sigma_px: (N,), 0 for no blur; the kernel ends at ceil(3 sigma), the border is mirrored about its pixels
        brightness: (N,); a value v from 0 to 1 becomes brightness * (0.5 + contrast * (v - 0.5)), not clipped
        contrast: (N,)
    """

    matrix: Float32
    blur_sigma_px: Float32
    brightness: Float32
    contrast: Float32

    def gain_and_offset(self, mean: float, std: float) -> tuple[Float32, Float32]:
        """Combine jitter and normalization: a gray level g from 0 to 255 becomes gain * g + offset, (N,) each."""
        gain = self.brightness * self.contrast / (255 * std)
        offset = (self.brightness * (1 - self.contrast) * GRAY - mean) / std
        return gain.astype(np.float32), offset.astype(np.float32)


class DrawnView(NamedTuple):
    """One view of each of N images, as drawn; every field is (N,).

    Attributes:
        center_x: center of the crop, in pixels of the image, not rounded
        center_y: likewise
        crop_w: width of the crop, in pixels of the image, not rounded
        crop_h: height of the crop, likewise
        mirrored: whether the image is flipped horizontally
        degrees: counter-clockwise rotation of the image after the flip
        blur_sigma_px: in pixels of the view, 0 for no blur
        brightness: factor
        contrast: factor about mid-gray
    """

    center_x: Float64
    center_y: Float64
    crop_w: Float64
    crop_h: Float64
    mirrored: Bool
    degrees: Float64
    blur_sigma_px: Float64
    brightness: Float64
    contrast: Float64

    def parameters(self, size_px: int) -> ViewParameters:
        """Return the parameters that executors apply."""
        mirror = np.where(self.mirrored, -1.0, 1.0)
        return ViewParameters(
            _matrix(size_px, self.center_x, self.center_y, self.crop_w, self.crop_h, mirror, self.degrees),
            self.blur_sigma_px.astype(np.float32),
            self.brightness.astype(np.float32),
            self.contrast.astype(np.float32),
        )


def draw(spec: ViewSpec, seed: int, rows: Records, epochs: Int64) -> tuple[DrawnView, DrawnView]:
    """Draw the two views of N samples, keyed by (seed, epoch, sample, view): the same in every process and order.

    Args:
        spec: ranges of the views
        seed: seed of the views
        rows: (N,) INDEX_ROW
        epochs: (N,)

    Returns:
        The first and the second view of each sample.
    """
    first, second = (_draw_view(spec, seed, view, rows, epochs) for view in range(VIEWS))
    return first, second


def draw_views(spec: ViewSpec, seed: int, rows: Records, epochs: Int64) -> tuple[ViewParameters, ViewParameters]:
    """Draw as `draw` does; return the parameters that executors apply."""
    first, second = (view.parameters(spec.size_px) for view in draw(spec, seed, rows, epochs))
    return first, second


def _draw_view(spec: ViewSpec, seed: int, view: int, rows: Records, epochs: Int64) -> DrawnView:
    u = rng.uniform(seed, f"view-{view}", rows["sample"], epochs, _DRAWS).T  # (draws, N)
    heights, widths = rows["height"].astype(np.float64), rows["width"].astype(np.float64)
    crop_h, crop_w = _crop_sizes(spec, u[8:].reshape(_TRIES, 2, -1), heights, widths)
    return DrawnView(
        center_x=crop_w / 2 + u[0] * (widths - crop_w),
        center_y=crop_h / 2 + u[1] * (heights - crop_h),
        crop_w=crop_w,
        crop_h=crop_h,
        mirrored=u[2] < spec.flip_probability,
        degrees=_between(-spec.rotation_degrees, spec.rotation_degrees, u[3]),
        blur_sigma_px=np.where(u[4] < spec.blur_probability, _between(*spec.blur_sigma_px, u[5]), 0.0),
        brightness=_between(1 - spec.brightness, 1 + spec.brightness, u[6]),
        contrast=_between(1 - spec.contrast, 1 + spec.contrast, u[7]),
    )


def _between(low: float, high: float, u: Float64) -> Float64:
    return low + (high - low) * u


def _crop_sizes(spec: ViewSpec, u: Float64, heights: Float64, widths: Float64) -> tuple[Float64, Float64]:
    """Return the first of ten drawn crops (area, aspect) that fits, else the largest crop of an allowed aspect.

    Args:
        spec: ranges of the views
        u: (tries, 2, N) uniform draws
        heights: (N,) of the images
        widths: (N,) of the images

    Returns:
        Heights and widths (N,) of the crops, in pixels of the image, not rounded.
    """
    area = _between(*spec.crop_area, u[:, 0]) * heights * widths  # (tries, N)
    aspect = np.exp(_between(np.log(spec.crop_aspect[0]), np.log(spec.crop_aspect[1]), u[:, 1]))
    crop_h, crop_w = np.sqrt(area / aspect), np.sqrt(area * aspect)
    fits = (crop_h <= heights) & (crop_w <= widths)
    last_aspect = np.clip(widths / heights, *spec.crop_aspect)
    last_h = np.minimum(heights, widths / last_aspect)
    chosen = fits.argmax(axis=0)[None]
    has_fit = fits.any(axis=0)
    return (
        np.where(has_fit, np.take_along_axis(crop_h, chosen, 0)[0], last_h),
        np.where(has_fit, np.take_along_axis(crop_w, chosen, 0)[0], last_h * last_aspect),
    )


def _matrix(
    size_px: int,
    center_x: Float64,
    center_y: Float64,
    crop_w: Float64,
    crop_h: Float64,
    mirror: Float64,
    degrees: Float64,
) -> Float32:
    """Compose the map from a view back to its image: undo rotation, flip, resize and crop."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    scale_x, scale_y = mirror * crop_w / size_px, crop_h / size_px
    linear = np.stack([np.stack([scale_x * cos, -scale_x * sin], -1), np.stack([scale_y * sin, scale_y * cos], -1)], 1)
    center = np.stack([center_x, center_y], -1)  # the view's center shows the crop's center
    shift = center - linear.sum(axis=2) * size_px / 2
    return np.concatenate([linear, shift[:, :, None]], axis=2).astype(np.float32)


def whole_image(
    size_px: int, heights: npt.ArrayLike, widths: npt.ArrayLike, fit: Fit, *, mirrored: bool = False
) -> ViewParameters:
    """Return the view that probing uses, without augmentation; all fits show a square image alike.

    Args:
        size_px: width and height of the view
        heights: (N,) of the images
        widths: (N,) of the images
        fit: how an image that is not square becomes a square
        mirrored: whether the image is flipped horizontally
    """
    height, width = np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    crop_h, crop_w = height, width
    if fit != "squash":
        crop_h = crop_w = np.maximum(height, width) if fit == "pad" else np.minimum(height, width)
    ones = np.ones(len(height))
    return ViewParameters(
        _matrix(size_px, width / 2, height / 2, crop_w, crop_h, -ones if mirrored else ones, 0 * ones),
        np.zeros(len(height), np.float32),
        ones.astype(np.float32),
        ones.astype(np.float32),
    )
