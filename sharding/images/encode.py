"""Image files, encoded as the gray JPEG or PNG that a shard holds, or rejected with a reason."""

import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from infra.extras import require_extra
from sharding.images import jpeg, png, tiff
from sharding.images.file_formats import DECODED, DICOM, DICOM_HEAD_BYTES, JPEG, PNG, TIFF, FileFormat, format_of
from sharding.images.grayscale import FEWEST_GRAY_LEVELS, MOST_DETECTOR_BITS, from_16_bit
from sharding.images.limits import MAX_FILE_BYTES, TOO_LARGE, is_too_large
from sharding.images.perceptual import fingerprint_of

FORMATS: Final = ("JPEG", "PNG")  # of packed images, by Pillow's names

MISSING: Final = "missing file"
UNREADABLE: Final = "unreadable file"
NOT_READ: Final = (MISSING, UNREADABLE)
EMPTY: Final = "zero bytes"
NOT_AN_IMAGE: Final = f"not an image ({DECODED})"
DAMAGED: Final = "truncated or damaged image"
TOO_MANY_BYTES: Final = f"file above {MAX_FILE_BYTES // 10**6} MB"
TOO_MUCH_MEMORY: Final = "decoding needs more memory than there is"
SEVERAL_FRAMES: Final = "animation or several pages"
UNSUPPORTED: Final = tiff.UNSUPPORTED
RLE_BMP: Final = "BMP with compression RLE is not supported; convert it to PNG"  # Pillow needs minutes for it
DARK_COLOR: Final = f"16-bit colors of at most {MOST_DETECTOR_BITS} bits; convert the file to gray"

_QUARTER_TURNS: Final = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PHOTOMETRIC: Final = 262  # TIFF's tag
_WHITE_IS_ZERO: Final = 0
_BMP_RLE: Final = (1, 2)  # BMP's numbers for RLE8 and RLE4
_DARK: Final = 1 << (MOST_DETECTOR_BITS - 8)
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
    path: Path,
    shorter_side_px: int,
    jpeg_quality: int,
    image_format: str = "jpeg",
    pass_through: bool = False,
    span: tuple[int, int] | None = None,
) -> EncodedImage | str:
    """Encode an image file like `encode`, or return the reason for rejecting it, in general by its first bytes.

    If `span` is given, the file is an archive that holds the image there: offset and size in bytes.
    """
    try:
        return encode(read_image_file(path, span), shorter_side_px, jpeg_quality, image_format, pass_through)
    except ImageRejected as rejected:
        return str(rejected)
    except MemoryError:
        return TOO_MUCH_MEMORY


def encode(
    content: bytes, shorter_side_px: int, jpeg_quality: int, image_format: str = "jpeg", pass_through: bool = False
) -> EncodedImage:
    """Encode an image as an upright 8-bit gray JPEG or PNG.

    16-bit pixels become 8-bit by the rule of `grayscale`, colors become luma, transparent pixels become black. Only
    pixels are kept: no EXIF, no comments. An image of fewer than FEWEST_GRAY_LEVELS gray levels is rejected, since it
    is no radiograph or was decoded by a wrong header.

    Args:
        content: a file in one of the formats of `file_formats`
        shorter_side_px: images are reduced to this shorter side, never enlarged
        jpeg_quality: 1 to 100
        image_format: `jpeg` or `png`
        pass_through: whether a gray JPEG that is small enough and holds only pixels keeps its bytes

    Raises:
        ImageRejected: if the file is not an image that can be packed
    """
    image, (source_width, source_height) = decode(content, shorter_side_px)
    _require_gray_levels(image)
    size = reduced_size((source_width, source_height), shorter_side_px)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if pass_through and size == (source_width, source_height) and jpeg.is_plain_gray(content):
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

    More than 8 bits become 8 by the rule of `grayscale`. What a header declares is checked before any pixel is decoded.

    Args:
        content: a file in one of the formats of `file_formats`
        shorter_side_px: allows a large JPEG to be reduced by 2, 4 or 8, to a shorter side that is still at least
            twice this; that is far faster

    Returns:
        The image, and the upright (width, height) of the source.

    Raises:
        ImageRejected: if the file is not an image that can be packed
    """
    file_format = _decodable(content[:DICOM_HEAD_BYTES])
    if file_format is DICOM:
        return _decode_dicom(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decode_image(content, file_format, shorter_side_px)


def _decode_image(
    content: bytes, file_format: FileFormat, shorter_side_px: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    try:
        image = _open(content, file_format)
        width, height = image.size
        if is_too_large(width, height):
            raise ImageRejected(TOO_LARGE)
        if file_format is JPEG:
            if jpeg.has_too_many_scans(content, width * height):
                raise ImageRejected(jpeg.TOO_MANY_SCANS)
            if shorter_side_px is not None:
                image.draft("L", reduced_size(image.size, 2 * shorter_side_px))
        elif getattr(image, "is_animated", False):
            raise ImageRejected(SEVERAL_FRAMES)
        image.load()
        gray = _gray(image)
        if _has_16_bit_colors(content, file_format) and np.asarray(gray).max() < _DARK:
            raise ImageRejected(DARK_COLOR)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(TOO_LARGE) from error
    except DECODER_ERRORS as error:
        raise ImageRejected(DAMAGED) from error
    if orientation != 1:  # turned only now, since one channel takes less memory
        gray.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(gray, in_place=True)
    return gray, (height, width) if orientation in _QUARTER_TURNS else (width, height)


def _decode_dicom(content: bytes) -> tuple[Image.Image, tuple[int, int]]:
    from sharding.images.dicom import DicomRejected, open_image  # noqa: PLC0415 (pydicom is an extra)

    try:
        dicom = open_image(content)
        if is_too_large(dicom.width, dicom.height):
            raise ImageRejected(TOO_LARGE)
        return Image.fromarray(dicom.gray()), (dicom.width, dicom.height)
    except DicomRejected as rejected:
        raise ImageRejected(str(rejected)) from rejected


def _require_gray_levels(image: Image.Image) -> None:
    levels = np.count_nonzero(image.histogram())
    if levels < FEWEST_GRAY_LEVELS:
        raise ImageRejected(f"only {levels} gray level{'s' if levels > 1 else ''}")


def read_image_file(path: Path, span: tuple[int, int] | None = None) -> bytes:
    """Return the content of an image file, or of a span of it; raises ImageRejected if it is not worth decoding."""
    try:
        if not path.is_file():
            raise ImageRejected(MISSING if not path.exists() else UNREADABLE)
        with path.open("rb") as file:
            start, size_bytes = span or (0, os.fstat(file.fileno()).st_size)
            file.seek(start)
            head = file.read(min(size_bytes, DICOM_HEAD_BYTES))
            if _decodable(head) is DICOM:
                require_extra("dicom", str(path))
            if size_bytes > MAX_FILE_BYTES:
                raise ImageRejected(TOO_MANY_BYTES)
            return head + (file.read() if span is None else file.read(size_bytes - len(head)))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageRejected(UNREADABLE) from error


def can_be_read(path: Path, span: tuple[int, int] | None = None) -> bool:
    """Return whether a file is there and this process can read it, whatever it holds; `span` as in `encode_file`."""
    try:
        read_image_file(path, span)
    except ImageRejected as rejected:
        return str(rejected) not in NOT_READ
    return True


def _decodable(head: bytes) -> FileFormat:
    """Return the format of a file that starts with `head`, unless it is rejected for it."""
    if not head:
        raise ImageRejected(EMPTY)
    file_format = format_of(head)
    if file_format is None:
        raise ImageRejected(NOT_AN_IMAGE)
    if file_format.decoder is None:
        raise ImageRejected(f"{file_format.name} is not supported; convert it to PNG")
    return file_format


def _open(content: bytes, file_format: FileFormat) -> Image.Image:
    """Open a file, unless its header shows why it must not be decoded."""
    problem = None
    if file_format is JPEG:
        problem = jpeg.problem(content)
    elif file_format is TIFF:
        problem = tiff.problem(tiff.directory_of(content))
    elif file_format is PNG:
        content = png.only_pixels(content)
    if problem is not None:
        raise ImageRejected(problem)
    try:
        image = Image.open(BytesIO(content), formats=[str(file_format.decoder)])
    except UnidentifiedImageError as error:
        raise ImageRejected(UNSUPPORTED if file_format is TIFF else DAMAGED) from error
    if image.format == "BMP" and image.info["compression"] in _BMP_RLE:
        raise ImageRejected(RLE_BMP)
    return image


def _has_16_bit_colors(content: bytes, file_format: FileFormat) -> bool:
    """Return whether a file has colors of 16 bits, of which Pillow keeps the upper eight."""
    if file_format is TIFF:
        directory = tiff.directory_of(content)
        return directory.bits > 8 and directory.channels > 1
    return png.is_16_bit_color(content)


def _gray(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert("L") clips these
        gray = Image.fromarray(from_16_bit(np.asarray(image)))
        # Pillow inverts such TIFFs of 8 bits, but not of 16.
        is_inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return ImageChops.invert(gray) if is_inverted else gray
    if image.mode in ("I", "F"):
        raise ImageRejected(UNSUPPORTED)
    if not image.has_transparency_data:
        return image.convert("L")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    return ImageChops.multiply(image.convert("L"), image.getchannel("A"))


def reduced_size(size: tuple[int, int], shorter_side_px: int) -> tuple[int, int]:
    """Return `size` scaled so that its shorter side is at most `shorter_side_px`, each side rounded, at least 1."""
    shorter = min(size)
    if shorter <= shorter_side_px:
        return size
    width, height = (max(1, (side * shorter_side_px + shorter // 2) // shorter) for side in size)
    return width, height
