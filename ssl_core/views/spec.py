"""The ranges of random views: which are drawn (`drawing`), with which options."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

from infra.configuration.options import key, require_between, setting
from infra.errors import UserError, require
from ssl_core.views.parameters import Steps

VIEWS: Final = 2
SIZES_PX: Final = (16, 4096)  # smallest and largest width and height of a view
SECOND: Final = 1  # the view that may show a sibling
MOST_DAYS: Final = 99_999  # of a sample's day, and between two samples
SecondFrom = Literal["same_image", "same_study", "same_patient"]


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
        require_between(self, "size_px", *SIZES_PX, "try 224")
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
        require_between(self, "second_days", 0, MOST_DAYS, "try 365")
        for name in ("second_probability", "second_days"):
            require(
                self.second_from != "same_image" or getattr(self, name) == getattr(type(self), name),
                f"{setting(self, name)} is that of another image, but {setting(self, 'second_from')}; "
                f"name one too: {key(self, 'second_from')}=same_study, or same_patient",
            )

    @cached_property  # as it is checked anew, and every step asks for it
    def small(self) -> "ViewSpec":
        """The spec of a small view, which differs in its size and its crops."""
        small = self.of_size(self.small_size_px or max(16, self.size_px // 2))
        return replace(small, crop_area=self.small_crop_area)

    def of_size(self, size_px: int) -> "ViewSpec":
        """Return the spec of views of another size, without small ones; their blur is at most an eighth of it."""
        blur = (min(self.blur_sigma_px[0], size_px / 8), min(self.blur_sigma_px[1], size_px / 8))
        return replace(self, size_px=size_px, blur_sigma_px=blur, small_views=0, small_size_px=None)

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
