"""Image files, encoded as the gray JPEG or PNG that a shard holds, or rejected with a reason."""

import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import ExifTags, Image, ImageOps

from infra.extras import require_extra
from sharding.images.file_formats import (
    JPEG_APP0,
    JPEG_END,
    JPEG_HUFFMAN_FRAMES,
    JPEG_SCAN,
    JPEG_SIGNATURE,
    JPEG_TABLES,
    PNG_SIGNATURE,
    is_dicom,
)
from sharding.images.grayscale import from_16_bit
from sharding.images.perceptual import fingerprint_of

FORMATS: Final = ("JPEG", "PNG")
MAX_PIXELS: Final = 64_000_000  # eight times the largest originals of CheXpert and ChestX-ray14
MAX_SIDE_PX: Final = 65_500  # the largest side of a JPEG

MISSING: Final = "missing file"
UNREADABLE: Final = "unreadable file"
EMPTY: Final = "zero bytes"
NOT_AN_IMAGE: Final = f"not an image ({', '.join(FORMATS)} or DICOM)"
DAMAGED: Final = "truncated or damaged image"
TOO_LARGE: Final = f"declared size above {MAX_PIXELS // 10**6} megapixels or {MAX_SIDE_PX} px a side"
UNSUPPORTED: Final = "pixel format is neither 8-bit nor 16-bit"

_QUARTER_TURNS: Final = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_JPEG_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # after compressed data: any but a restart
# Pillow's decoders raise these on bytes that are not what they claim to be.
DECODER_ERRORS: Final = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)


class ImageRejected(Exception):
    """The file is not an image that can be packed; the message is a reason of this module or of `dicom`."""


@dataclass(frozen=True)
class EncodedImage:
    """A gray image, encoded for a shard.

    Attributes:
        content: the JPEG or PNG file
        extension: `jpg` or `png`
        height: height in pixels
        width: width in pixels
        source_height: height of the upright source, in pixels
        source_width: width of the upright source, in pixels
        source_bytes: size of the source file
        pixel_sum: sum over the 8-bit pixels before compression
        pixel_square_sum: sum of squares over the 8-bit pixels before compression
        fingerprint: FINGERPRINT of the pixels before compression
    """

    content: bytes
    extension: str
    height: int
    width: int
    source_height: int
    source_width: int
    source_bytes: int
    pixel_sum: int
    pixel_square_sum: int
    fingerprint: bytes


def encode_file(
    path: Path, shorter_side_px: int, jpeg_quality: int, image_format: str = "jpeg", pass_through: bool = False
) -> EncodedImage | str:
    """Encode an image file like `encode`, or return the reason for rejecting it."""
    try:
        content = _read(path)
        if is_dicom(content):
            require_extra("dicom", str(path))
        return encode(content, shorter_side_px, jpeg_quality, image_format, pass_through)
    except ImageRejected as rejected:
        return str(rejected)


def encode(
    content: bytes, shorter_side_px: int, jpeg_quality: int, image_format: str = "jpeg", pass_through: bool = False
) -> EncodedImage:
    """Encode an image as an upright 8-bit gray JPEG or PNG.

    16-bit pixels become 8-bit by the rule of `grayscale`, colors become luma, transparent pixels become black. Only
    pixels are kept: no EXIF, no comments.

    Args:
        content: a JPEG, PNG or DICOM file
        shorter_side_px: images are reduced to this shorter side, never enlarged
        jpeg_quality: 1 to 100
        image_format: `jpeg` or `png`
        pass_through: whether a gray JPEG that is small enough and holds only pixels keeps its bytes

    Raises:
        ImageRejected: if the file is not an image that can be packed
    """
    image, (source_width, source_height) = decode(content, shorter_side_px)
    size = _reduced((source_width, source_height), shorter_side_px)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if pass_through and size == (source_width, source_height) and is_plain_gray_jpeg(content):
        encoded = content
    else:
        encoded = _compressed(image, jpeg_quality, image_format)
    counts = image.histogram()
    return EncodedImage(
        content=encoded,
        extension="png" if image_format == "png" else "jpg",
        height=image.height,
        width=image.width,
        source_height=source_height,
        source_width=source_width,
        source_bytes=len(content),
        pixel_sum=sum(value * count for value, count in enumerate(counts)),
        pixel_square_sum=sum(value * value * count for value, count in enumerate(counts)),
        fingerprint=fingerprint_of(image),
    )


def is_plain_gray_jpeg(content: bytes) -> bool:
    """Return whether a file is a JPEG of one 8-bit channel that holds only pixels.

    It must have no EXIF (so no rotation), comment, profile or thumbnail, which may hold a patient's name, and no byte
    after the image. Only the markers are checked (ITU-T T.81, annex B); the data may still be damaged.
    """
    position, gray = 2, False
    if not content.startswith(JPEG_SIGNATURE):
        return False
    while position + 2 <= len(content) and content[position] == 0xFF:
        if content[position : position + 2] == JPEG_END:
            return gray and position + 2 == len(content)
        marker = content[position + 1]
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position + 4 : end]
        if marker in JPEG_HUFFMAN_FRAMES:
            gray = segment[:1] == b"\x08" and segment[5:6] == b"\x01"
        elif marker == JPEG_SCAN:  # compressed data follow
            next_marker = _JPEG_NEXT_MARKER.search(content, end)
            end = next_marker.start() if next_marker else len(content)
        elif not (marker in JPEG_TABLES or (marker == JPEG_APP0 and segment[:5] == b"JFIF\0" and len(segment) == 14)):
            return False
        position = end
    return False


def _compressed(image: Image.Image, jpeg_quality: int, image_format: str) -> bytes:
    image.info.clear()  # otherwise Pillow writes the source's comments and XMP into the file
    file = BytesIO()
    if image_format == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=jpeg_quality)
    return file.getvalue()


def decode(content: bytes, shorter_side_px: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image to upright 8-bit gray.

    More than 8 bits become 8 by the rule of `grayscale`. The declared size is checked before any pixel is decoded.

    Args:
        content: a JPEG, PNG or DICOM file
        shorter_side_px: allows a large JPEG to be reduced by 2, 4 or 8, to a shorter side that is still at least
            twice this; that is far faster

    Returns:
        The image, and the upright (width, height) of the source.

    Raises:
        ImageRejected: if the file is not an image that can be packed
    """
    if not content:
        raise ImageRejected(EMPTY)
    if is_dicom(content):
        return _decode_dicom(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = _open(content)
        width, height = image.size
        _require_size(width, height)
        try:
            if shorter_side_px is not None:
                reduced_width, reduced_height = _reduced(image.size, 2 * shorter_side_px)
                image.draft("L", (reduced_width, reduced_height))
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _QUARTER_TURNS
            ImageOps.exif_transpose(image, in_place=True)
            return _gray(image), (height, width) if turned else (width, height)
        except DECODER_ERRORS as error:
            raise ImageRejected(DAMAGED) from error


def _decode_dicom(content: bytes) -> tuple[Image.Image, tuple[int, int]]:
    from sharding.images.dicom import DicomRejected, open_image  # noqa: PLC0415 (pydicom is an extra)

    try:
        dicom = open_image(content)
        _require_size(dicom.width, dicom.height)
        return Image.fromarray(dicom.gray()), (dicom.width, dicom.height)
    except DicomRejected as rejected:
        raise ImageRejected(str(rejected)) from rejected


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        raise ImageRejected(TOO_LARGE)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageRejected(MISSING if not path.exists() else UNREADABLE)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageRejected(UNREADABLE) from error


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(TOO_LARGE) from error
    except DECODER_ERRORS as error:
        is_image = content.startswith((JPEG_SIGNATURE, PNG_SIGNATURE))
        raise ImageRejected(DAMAGED if is_image else NOT_AN_IMAGE) from error


def _gray(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert("L") clips these
        return Image.fromarray(from_16_bit(np.asarray(image)))
    if image.mode in ("I", "F"):
        raise ImageRejected(UNSUPPORTED)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return image.convert("L")


def _reduced(size: tuple[int, int], shorter_side_px: int) -> tuple[int, int]:
    """Return `size` scaled so that its shorter side is at most `shorter_side_px`, each side rounded, at least 1."""
    shorter = min(size)
    if shorter <= shorter_side_px:
        return size
    width, height = (max(1, (side * shorter_side_px + shorter // 2) // shorter) for side in size)
    return width, height
