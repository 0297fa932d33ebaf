"""Random views of an image: the ranges, the draw, and the parameters that executors apply (`parameters`)."""

from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np

from infra import rng
from infra.arrays import Bool, Float64, Int64, Records, UInt64
from infra.errors import UserError, require
from infra.options import key, require_between, setting
from ssl_core.views.parameters import Crop, Steps, ViewParameters, matrix_and_size

VIEWS: Final = 2
SECOND: Final = 1  # the view that may show a sibling
SecondFrom = Literal["same_image", "same_study", "same_patient"]
_TRIES: Final = 10  # to draw a crop that fits, as in torchvision's RandomResizedCrop
_CROP_DRAWS: Final = slice(8, 8 + 2 * _TRIES)
_DRAWS: Final = _CROP_DRAWS.stop + 9
_ERASED_ASPECT: Final = (0.3, 3.3)  # width / height, as in torchvision's RandomErasing


@dataclass(frozen=True)
class ViewSpec:
    """Ranges of the five augmentations, and options beyond them that are off by default.

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
        contrast: largest change of contrast; the factor is between 1 - this and 1 + this
        antialias: whether to reduce an image without aliasing before a crop of it is shrunk more than 1.5 times, so
            that datasets can be packed once, at the size of their files
        rotation_probability: probability of a rotation
        jitter_probability: probability of a change of brightness and contrast, both or none
        contrast_about: gray level that contrast leaves as it is: mid-gray (gray), or the mean of the view as in
            torchvision (mean)
        clip: whether to clip values to black and white after each change of contrast and brightness, as torchvision
            does
        gamma_probability: probability of a gamma curve, which precedes contrast and brightness
        gamma: smallest and largest exponent, drawn evenly on the log scale; below 1 brightens
        erase_probability: probability that a rectangle is erased, which then shows the mean gray level
        erase_area: smallest and largest area of the rectangle, as shares of the view's area, from 0.01 to 0.3
        second_from: image that the second view shows: same_image, or another image of the study (same_study) or patient
            (same_patient); a sample without another one shows itself
        second_probability: probability of another image in the second view
        second_days: largest number of days between the two images, for sets that were packed with days; an image of an
            unknown day shows itself. Any number by default
        small_views: number of small views of each sample besides the two large ones (multi-crop), up to 12; all views
            are contrasted with the large ones
        small_size_px: width and height of a small view, from 16 to size_px; half of size_px by default
        small_crop_area: smallest and largest area of a small view's crop, as shares of the image's area
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
    antialias: bool = False
    rotation_probability: float = 1.0
    jitter_probability: float = 1.0
    contrast_about: Literal["gray", "mean"] = "gray"
    clip: bool = False
    gamma_probability: float = 0.0
    gamma: tuple[float, float] = (0.7, 1.4)
    erase_probability: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)
    second_from: SecondFrom = "same_image"
    second_probability: float = 1.0
    second_days: int | None = None
    small_views: int = 0
    small_size_px: int | None = None
    small_crop_area: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        require_between(self, "size_px", 16, 4096, "try 224")
        _require_range(self, "crop_area", 0.01, 1.0, "[0.3, 1.0]")
        _require_range(self, "crop_aspect", 0.1, 10.0, "[0.75, 1.333]")
        _require_range(self, "small_crop_area", 0.01, 1.0, "[0.05, 0.3]")
        require_between(self, "small_views", 0, 12, "try 4")
        if self.small_size_px is not None:
            require_between(self, "small_size_px", 16, self.size_px, f"try {max(16, self.size_px // 2)}")
        _require_range(self, "blur_sigma_px", 0.01, self.size_px / 8, "[0.1, 2.0]")
        _require_range(self, "gamma", 0.1, 10.0, "[0.7, 1.4]")
        _require_range(self, "erase_area", 0.01, 0.3, "[0.02, 0.2]")
        most = {
            "flip_probability": 1,
            "rotation_degrees": 180,
            "blur_probability": 1,
            "brightness": 0.99,
            "contrast": 0.99,
            "rotation_probability": 1,
            "jitter_probability": 1,
            "gamma_probability": 1,
            "erase_probability": 1,
            "second_probability": 1,
        }
        for name, largest in most.items():
            require_between(self, name, 0, largest, f"try {getattr(type(self), name)}")
        require_between(self, "second_days", 0, 99_999, "try 365")
        for name in ("second_probability", "second_days"):
            require(
                self.second_from != "same_image" or getattr(self, name) == getattr(type(self), name),
                f"{setting(self, name)} is that of another image, but {setting(self, 'second_from')}; "
                f"name one too: {key(self, 'second_from')}=same_study, or same_patient",
            )

    @property
    def small(self) -> "ViewSpec":
        """The spec of a small view, which differs in its size and its crops."""
        size_px = self.small_size_px or max(16, self.size_px // 2)
        blur = (min(self.blur_sigma_px[0], size_px / 8), min(self.blur_sigma_px[1], size_px / 8))
        return replace(
            self,
            size_px=size_px,
            crop_area=self.small_crop_area,
            blur_sigma_px=blur,
            small_views=0,
            small_size_px=None,
        )

    @property
    def of_each_view(self) -> list["ViewSpec"]:
        """The spec of each view of a sample, the large ones first."""
        return [self] * VIEWS + [self.small] * self.small_views

    @property
    def small_sizes_px(self) -> tuple[int, ...]:
        """Width and height of each small view."""
        return (self.small.size_px,) * self.small_views

    @property
    def steps(self) -> Steps:
        """The optional steps of the views."""
        return Steps(
            antialias=self.antialias,
            contrast_about_mean=self.contrast_about == "mean",
            clip=self.clip,
            gamma=self.gamma_probability > 0,
            erase=self.erase_probability > 0,
        )


def _require_range(spec: ViewSpec, name: str, least: float, most: float, example: str) -> None:
    pair = getattr(spec, name)
    if len(pair) != 2 or not least <= pair[0] <= pair[1] <= most:
        rule = f"must be two numbers from {least:g} to {most:g}, the smaller first"
        raise UserError(f"{key(spec, name)}={list(pair)} {rule}; try {example}")


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
