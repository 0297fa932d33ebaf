"""The draw of random views: a pure function of seed, epoch, sample and view, within the ranges of a `ViewSpec`."""

from typing import Final, NamedTuple

import numpy as np

from infra import rng
from infra.arrays import Bool, Float64, Int64, Records, UInt64
from ssl_core.views.parameters import Crop, ViewParameters, matrix_and_size
from ssl_core.views.spec import SECOND, ViewSpec

_TRIES: Final = 10  # to draw a crop that fits, as in torchvision's RandomResizedCrop
_CROP_DRAWS: Final = slice(8, 8 + 2 * _TRIES)
_DRAWS: Final = _CROP_DRAWS.stop + 9
_ERASED_ASPECT: Final = (0.3, 3.3)  # width / height, as in torchvision's RandomErasing


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
        contrast: factor
        gamma: exponent, 1 for none
        erased_x: left side of the erased rectangle, in whole pixels of the view
        erased_y: its upper side
        erased_w: its width, 0 for none
        erased_h: its height
        image_w: width of the image
        image_h: height of the image
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
    gamma: Float64
    erased_x: Float64
    erased_y: Float64
    erased_w: Float64
    erased_h: Float64
    image_w: Float64
    image_h: Float64

    def parameters(self, spec: ViewSpec) -> ViewParameters:
        """Return the parameters that executors apply to make views by this `spec`."""
        mirror = np.where(self.mirrored, -1.0, 1.0)
        crop = Crop(self.center_x, self.center_y, self.crop_w, self.crop_h, mirror, self.degrees)
        matrix, reduced_px = matrix_and_size(spec.size_px, crop, self.image_h, self.image_w, antialias=spec.antialias)
        erased = np.stack([self.erased_x, self.erased_y, self.erased_w, self.erased_h], axis=1)
        return ViewParameters(
            matrix,
            self.blur_sigma_px.astype(np.float32),
            self.brightness.astype(np.float32),
            self.contrast.astype(np.float32),
            reduced_px,
            self.gamma.astype(np.float32),
            erased.astype(np.float32),
        )


def draw(
    spec: ViewSpec, seed: int, rows: Records, epochs: Int64, second_rows: Records | None = None
) -> tuple[DrawnView, ...]:
    """Draw the views of N samples, keyed by (seed, epoch, sample, view): the same in every process and order.

    Args:
        spec: ranges of the views
        seed: seed of the views
        rows: (N,) INDEX_ROW
        epochs: (N,)
        second_rows: (N,) INDEX_ROW of the images that the second views show, if these are not all the samples

    Returns:
        The first and the second large view of each sample, then its small ones.
    """
    shown = {SECOND: rows if second_rows is None else second_rows}
    return tuple(
        _draw_view(of_view, seed, number, rows["sample"], epochs, shown.get(number, rows))
        for number, of_view in enumerate(spec.of_each_view)
    )


def draw_views(
    spec: ViewSpec, seed: int, rows: Records, epochs: Int64, second_rows: Records | None = None
) -> tuple[ViewParameters, ...]:
    """Draw as `draw` does; return the parameters that executors apply."""
    views = zip(draw(spec, seed, rows, epochs, second_rows), spec.of_each_view, strict=True)
    return tuple(view.parameters(of_view) for view, of_view in views)


def _draw_view(spec: ViewSpec, seed: int, view: int, samples: UInt64, epochs: Int64, shown: Records) -> DrawnView:
    """Draw a view by the identities of the samples and the sizes of the images that it shows."""
    u = rng.uniform(seed, f"view-{view}", samples, epochs, _DRAWS).T  # (draws, N); more may only be appended
    turn, jitter, *gamma_and_rectangle = u[_CROP_DRAWS.stop :]
    heights, widths = shown["height"].astype(np.float64), shown["width"].astype(np.float64)
    crop_h, crop_w = _crop_sizes(spec, u[_CROP_DRAWS].reshape(_TRIES, 2, -1), heights, widths)
    is_turned, is_jittered = turn < spec.rotation_probability, jitter < spec.jitter_probability
    is_curved = gamma_and_rectangle[0] < spec.gamma_probability
    return DrawnView(
        center_x=crop_w / 2 + u[0] * (widths - crop_w),
        center_y=crop_h / 2 + u[1] * (heights - crop_h),
        crop_w=crop_w,
        crop_h=crop_h,
        mirrored=u[2] < spec.flip_probability,
        degrees=np.where(is_turned, _between(-spec.rotation_degrees, spec.rotation_degrees, u[3]), 0.0),
        blur_sigma_px=np.where(u[4] < spec.blur_probability, _between(*spec.blur_sigma_px, u[5]), 0.0),
        brightness=np.where(is_jittered, _between(1 - spec.brightness, 1 + spec.brightness, u[6]), 1.0),
        contrast=np.where(is_jittered, _between(1 - spec.contrast, 1 + spec.contrast, u[7]), 1.0),
        gamma=np.where(is_curved, _log_between(*spec.gamma, gamma_and_rectangle[1]), 1.0),
        **_rectangle(spec, *gamma_and_rectangle[2:]),
        image_w=widths,
        image_h=heights,
    )


def _rectangle(
    spec: ViewSpec, chance: Float64, area: Float64, aspect: Float64, x: Float64, y: Float64
) -> dict[str, Float64]:
    """Return the erased rectangle of each of N views, whole pixels within the view; all arguments are (N,) draws."""
    side = np.sqrt(_between(*spec.erase_area, area)) * spec.size_px
    root = np.sqrt(_log_between(*_ERASED_ASPECT, aspect))
    is_erased = chance < spec.erase_probability
    width, height = (np.where(is_erased, np.maximum(1, np.rint(length)), 0) for length in (side * root, side / root))
    return {
        "erased_x": np.floor(x * (spec.size_px - width + 1)),
        "erased_y": np.floor(y * (spec.size_px - height + 1)),
        "erased_w": width,
        "erased_h": height,
    }


def _between(low: float, high: float, u: Float64) -> Float64:
    return low + (high - low) * u


def _log_between(low: float, high: float, u: Float64) -> Float64:
    return np.exp(_between(np.log(low), np.log(high), u))


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
    aspect = _log_between(*spec.crop_aspect, u[:, 1])
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
