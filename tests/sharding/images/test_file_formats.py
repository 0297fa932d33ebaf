"""Formats of image files: pixels equal to a reference, or a true reason."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from infra.arrays import Integer, UInt8
from sharding.images import encode as reasons
from sharding.images.encode import ImageRejected, decode
from sharding.images.file_formats import DICOM_HEAD_BYTES, format_of
from sharding.images.grayscale import from_16_bit
from sharding.images.limits import MAX_FILE_BYTES
from tests.sharding.conftest import RadiographMaker

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def gray(content: bytes) -> UInt8:
    return np.asarray(decode(content)[0])


def reason(content: bytes) -> str:
    with pytest.raises(ImageRejected) as rejected:
        decode(content)
    return str(rejected.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(pixels: Integer, photometric: int = BLACK_IS_ZERO, order: Literal["<", ">"] = "<", **tags: int) -> bytes:
    """A TIFF of one strip, written as TIFF 6.0 says; `tags` are t259=7 and so on."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = 8 * pixels.dtype.itemsize
    bits_at = 8 + len(data)
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, channels, bits if channels == 1 else bits_at),
        259: (3, 1, 1),
        262: (3, 1, photometric),
        273: (4, 1, 8),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, len(data)),
    }
    entries |= {int(name[1:]): (3, 1, value) for name, value in tags.items()}
    body = data + struct.pack(f"{order}{channels}H", *[bits] * channels)
    body += bytes(len(body) % 2)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        is_short = kind == 3 and count == 1
        directory += struct.pack(f"{order}HHI" + ("HH" if is_short else "I"), tag, kind, count, value, *[0] * is_short)
    signature = b"II*\0" if order == "<" else b"MM\0*"
    return signature + struct.pack(f"{order}I", 8 + len(body)) + body + directory + bytes(4)


@pytest.fixture(scope="module")
def pixels(radiograph: RadiographMaker) -> UInt8:
    return np.asarray(radiograph(0))


def test_lossless_files_keep_every_gray_level(pixels: UInt8) -> None:
    image = Image.fromarray(pixels)
    files = [
        saved(image, "PNG"),
        saved(image, "BMP"),
        saved(image.convert("RGB"), "BMP"),
        *(saved(image, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
        saved(image.convert("RGB"), "TIFF", compression="tiff_lzw"),
        saved(image, "WEBP", lossless=True),
        tiff(pixels),
        tiff(pixels, order=">"),
        tiff(255 - pixels, WHITE_IS_ZERO),
        tiff(np.stack([pixels] * 3, axis=2), RGB),
    ]
    for content in files:
        assert (gray(content) == pixels).all(), content[:4]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiffs_keep_what_8_bits_hold(pixels: UInt8, order: Literal["<", ">"]) -> None:
    values = pixels.astype(np.uint16) * 257
    assert (gray(tiff(values, order=order)) == pixels).all()
    twelve_bits = pixels.astype(np.uint16) * 16
    assert (gray(tiff(twelve_bits, order=order)) == from_16_bit(twelve_bits)).all()
    if order == "<":
        assert (gray(tiff(65535 - values, WHITE_IS_ZERO)) == pixels).all()
        assert (gray(saved(Image.fromarray(values), "TIFF", compression="tiff_lzw")) == pixels).all()


@pytest.mark.parametrize("image_format", ["WEBP", "JPEG"])
def test_lossy_files_are_close_to_the_pixels(pixels: UInt8, image_format: str) -> None:
    difference = gray(saved(Image.fromarray(pixels), image_format, quality=90)).astype(int) - pixels
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_files_are_turned_upright_by_their_orientation(pixels: UInt8, image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 100} if image_format == "JPEG" else {}
    image, size = decode(saved(Image.fromarray(pixels), image_format, exif=exif, **options))
    turns = {3: 2, 6: 3, 8: 1}[orientation]  # counterclockwise
    assert size == image.size
    assert np.abs(np.asarray(image).astype(int) - np.rot90(pixels, turns)).max() <= 4


def test_several_frames_are_rejected(pixels: UInt8) -> None:
    image, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    for image_format in ("WEBP", "PNG"):
        content = saved(image, image_format, save_all=True, append_images=[other])
        assert reason(content) == reasons.SEVERAL_FRAMES
    assert reason(saved(image, "TIFF", save_all=True, append_images=[other])) == "TIFF of several pages"


def test_whole_files_that_are_not_decoded_are_named(pixels: UInt8) -> None:
    image = Image.fromarray(pixels)
    convert = "is not supported; convert it to PNG"
    assert reason(saved(image, "GIF")) == f"GIF {convert}"
    assert reason(saved(image, "JPEG2000")) == f"JPEG 2000 {convert}"
    assert reason(saved(image, "PPM")) == f"Netpbm {convert}"
    assert reason(saved(image.convert("RGB"), "TIFF", compression="jpeg")) == f"TIFF with compression JPEG {convert}"
    assert reason(tiff(pixels, t259=34925)) == f"TIFF with compression number 34925 {convert}"
    assert reason(tiff(pixels.astype(np.uint32))) == reasons.UNSUPPORTED
    assert reason(tiff(pixels.astype(np.int16), t339=2)) == reasons.UNSUPPORTED
    assert reason(tiff(pixels.astype(np.float32), t339=3)) == reasons.UNSUPPORTED


def test_a_png_is_decoded_whatever_text_and_profile_it_holds(pixels: UInt8) -> None:
    content = saved(Image.fromarray(pixels), "PNG")
    for extra in (
        chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"iTXt", b"damaged"),
    ):
        assert (gray(content[:33] + extra + content[33:]) == pixels).all()


def test_16_bit_colors_are_rejected_when_their_upper_eight_bits_are_almost_black(pixels: UInt8) -> None:
    def png(values: Integer) -> bytes:
        height, width = pixels.shape
        rows = np.repeat(values.astype(">u2")[:, :, None], 3, axis=2).tobytes()
        raw = b"".join(b"\0" + rows[row * width * 6 : (row + 1) * width * 6] for row in range(height))
        header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
        data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + data

    values = pixels.astype(np.uint16)
    assert (gray(png(values * 257)) == pixels).all()
    assert reason(png(values * 16)) == reasons.DARK_COLOR
    assert reason(tiff(np.stack([values * 16] * 3, axis=2), RGB)) == reasons.DARK_COLOR


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x20ftypheic", "HEIF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"\xff\xd8\xff\xf7", "JPEG-LS"),
        (b"II\x2b\0\x08\0\0\0", "BigTIFF"),
        (b"\x5c\x01\0\0" + bytes(100), "NIfTI"),
        (b"PK\x03\x04", None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"BM a text", None),
        (b"", None),
    ],
)
def test_format_is_told_by_the_first_bytes(head: bytes, name: str | None) -> None:
    found = format_of(head)
    assert (found and found.name) == name


def test_large_files_are_rejected_by_their_first_bytes(tmp_path: Path) -> None:
    """A stray archive in a class folder, in a process that has no memory for it."""
    archive, image = tmp_path / "backup.tar", tmp_path / "large.png"
    for path, head in ((archive, b"train/"), (image, b"\x89PNG\r\n\x1a\n")):
        with path.open("wb") as file:
            file.write(head)
            file.truncate(3 << 30)
    script = f"""
import resource, sys
from pathlib import Path
from typing import Literal
from sharding.images.encode import encode_file
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
print([encode_file(Path(path), 320, 90) for path in {[str(archive), str(image)]}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([reasons.NOT_AN_IMAGE, reasons.TOO_MANY_BYTES])


def test_a_file_is_rejected_when_memory_does_not_suffice(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (7900, 7900)).save(path, compress_level=1)
    script = f"""
import resource
from pathlib import Path
from typing import Literal
from sharding.images.encode import encode_file
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (30 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(encode_file(Path({str(path)!r}), 320, 90))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == reasons.TOO_MUCH_MEMORY


def test_limit_of_bytes_admits_a_16_bit_image_of_the_most_pixels() -> None:
    assert MAX_FILE_BYTES > 2 * 64_000_000 + DICOM_HEAD_BYTES


def test_a_progressive_jpeg_of_many_scans_is_rejected_before_it_is_decoded() -> None:
    content = saved(Image.new("L", (8000, 8000)), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert reason(content[:-2] + scan * 60 + content[-2:]).startswith("JPEG whose scans pass over more than")
    assert decode(content, 320)[1] == (8000, 8000)
