"""From an image file to the gray JPEG or PNG that a shard holds, or to the reason why it is refused."""

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
from sharding.images.grayscale import from_16_bit
from sharding.images.magic import is_dicom

FORMATS: Final = ("JPEG", "PNG")
MAX_PIXELS: Final = 64_000_000  # eight times the largest originals of CheXpert and ChestX-ray14
MAX_SIDE_PX: Final = 65_500  # what a JPEG can hold

MISSING: Final = "missing file"
UNREADABLE: Final = "unreadable file"
EMPTY: Final = "zero bytes"
NOT_AN_IMAGE: Final = f"not an image ({', '.join(FORMATS)} or DICOM)"
DAMAGED: Final = "truncated or damaged image"
TOO_LARGE: Final = f"declared size above {MAX_PIXELS // 10**6} megapixels or {MAX_SIDE_PX} px a side"
UNSUPPORTED: Final = "pixel format is neither 8-bit nor 16-bit"

_QUARTER_TURNS: Final = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_JPEG_FRAMES: Final = (b"\xc0", b"\xc1", b"\xc2")  # baseline, extended, progressive
_JPEG_TABLES: Final = (b"\xc4", b"\xdb", b"\xdd")  # Huffman, quantisation, restart interval
_JPEG_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# What Pillow's decoders raise on bytes that are not what they claim to be.
DECODER_ERRORS: Final = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)


class ImageRejected(Exception):
    """The file is not an image that can be packed; the message is a reason of this module or of `dicom_file`."""


@dataclass(frozen=True)
class EncodedImage:
    """A gray JPEG or PNG, its size, that of the upright source, and sums over its 8-bit pixels before compression.

    extension: `jpg` or `png`.
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


def encode_file(
    path: Path, shorter_side_px: int, jpeg_quality: int, image_format: str = "jpeg", pass_through: bool = False
) -> EncodedImage | str:
    """Encode an image file, or return the reason why it is rejected."""
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
    """Return an image as upright 8-bit gray JPEG or PNG whose shorter side is at most `shorter_side_px`.

    Images are made smaller, never larger. 16-bit pixels become 8-bit as `grayscale` says, colours become
    luma, transparent pixels black. Nothing but pixels is kept: no EXIF, no comments. With `pass_through`, a
    gray JPEG that is small enough and holds nothing but pixels keeps its bytes. Raises ImageRejected.
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
    )


def is_plain_gray_jpeg(content: bytes) -> bool:
    """Say whether a file is a JPEG of one 8-bit channel that holds pixels and nothing else.

    Nothing else: no EXIF (so no rotation either), comment, profile or thumbnail, in which a patient's name may stand,
    and no byte behind the image. Looks at the markers only (ITU-T T.81, annex B); the data may still be damaged.
    """
    position, gray = 2, False
    if content[:2] != b"\xff\xd8":
        return False
    while content[position : position + 1] == b"\xff":
        marker = content[position + 1 : position + 2]
        if marker == b"\xd9":
            return gray and position + 2 == len(content)
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position + 4 : end]
        if marker in _JPEG_FRAMES:
            gray = segment[:1] == b"\x08" and segment[5:6] == b"\x01"
        elif marker == b"\xda":  # behind it follow compressed data, up to the next marker that is no restart
            found = _JPEG_NEXT_MARKER.search(content, end)
            end = found.start() if found else len(content)
        elif not (marker in _JPEG_TABLES or (marker == b"\xe0" and segment[:5] == b"JFIF\0" and len(segment) == 14)):
            return False
        position = end
    return False


def _compressed(image: Image.Image, jpeg_quality: int, image_format: str) -> bytes:
    image.info.clear()  # Pillow would write the source's comments and XMP into the file
    file = BytesIO()
    if image_format == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=jpeg_quality)
    return file.getvalue()


def decode(content: bytes, shorter_side_px: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a JPEG, PNG or DICOM to an upright 8-bit gray image; returns it with the source's upright (width, height).

    More than 8 bits become 8 as `grayscale` says. The declared size is checked before any pixel is decoded.
    With `shorter_side_px`, a large JPEG may be returned reduced by 2, 4 or 8, its shorter side still at least twice
    that, which is far quicker. Raises ImageRejected.
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
        raise ImageRejected(DAMAGED if content.startswith(_MAGIC) else NOT_AN_IMAGE) from error


def _gray(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert("L") would clip
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
