"""How images are stored in shards: the options of packing that their pixels depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Encoding:
    """The encoding of packed images, as `encode` takes it.

    Attributes:
        shorter_side_px: images are reduced to this shorter side, never enlarged
        image_format: jpeg or png
        jpeg_quality: 1 to 100
        pass_through: whether a gray JPEG that is small enough keeps its bytes
    """

    shorter_side_px: int
    image_format: str = "jpeg"
    jpeg_quality: int = 90
    pass_through: bool = False

    def __str__(self) -> str:
        """Describe the encoding in words."""
        kept = ", gray JPEGs that are small enough as they are" * self.pass_through
        quality = f"JPEG of quality {self.jpeg_quality}" if self.image_format == "jpeg" else self.image_format.upper()
        return f"{quality} with a shorter side of at most {self.shorter_side_px} px{kept}"


def encoding_of(options: Mapping[str, Any]) -> Encoding:
    """Return the encoding among the options of a manifest; raises KeyError if they do not hold it."""
    return Encoding(
        shorter_side_px=int(options["shorter_side_px"]),
        image_format=str(options["image_format"]),
        jpeg_quality=int(options["jpeg_quality"]),
        pass_through=bool(options["pass_through"]),
    )
