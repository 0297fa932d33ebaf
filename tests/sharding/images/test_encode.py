from io import BytesIO
from pathlib import Path
from struct import pack as packed
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.arrays import UInt8
from sharding.images import encode as reasons
from sharding.images.encode import ImageRejected, decode, encode, encode_file
from tests.sharding.conftest import RadiographMaker


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(content: bytes, **options: Any) -> UInt8:
    """The decoded pixels of the JPEG that is packed for an image."""
    image = Image.open(BytesIO(encode(content, **{"shorter_side_px": 320, "jpeg_quality": 100, **options}).content))
    assert (image.format, image.mode) == ("JPEG", "L")
    return np.asarray(image).astype(int)


def declared_size(png: bytes, width: int, height: int) -> bytes:
    """The same PNG, claiming another size."""
    header = b"IHDR" + packed(">II", width, height) + png[24:29]
    return png[:12] + header + packed(">I", crc32(header)) + png[33:]


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 200))
def test_encode_reduces_to_the_shorter_side_and_never_enlarges(width: int, height: int, shorter_side_px: int) -> None:
    assume(width * height >= 8)
    ramp = Image.fromarray(np.resize(np.arange(256, dtype=np.uint8), (height, width)))
    encoded = encode(saved(ramp), shorter_side_px, 90)
    assert (encoded.source_width, encoded.source_height) == (width, height)
    assert min(encoded.width, encoded.height) == min(width, height, shorter_side_px)
    scale = min(encoded.width, encoded.height) / min(width, height)
    assert encoded.width == pytest.approx(width * scale, abs=0.5001)
    assert encoded.height == pytest.approx(height * scale, abs=0.5001)


def test_encode_sums_the_pixels_before_compression(radiograph: RadiographMaker) -> None:
    image = radiograph(1)
    encoded = encode(saved(image), 320, 20)
    values = np.asarray(image).astype(int)
    assert (encoded.pixel_sum, encoded.pixel_square_sum) == (values.sum(), (values**2).sum())


def test_encode_scales_16_bit_over_its_full_range() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    assert np.abs(pixels(saved(Image.fromarray(ramp))) - ramp / 257).max() <= 3


def test_encode_shows_12_bit_values_in_a_16_bit_file_as_bright_as_in_a_dicom_file() -> None:
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    result = pixels(saved(Image.fromarray(ramp)))
    assert np.abs(result - ramp * (255 / 4095)).max() <= 3
    assert len(np.unique(result)) > 200


@pytest.mark.parametrize("levels", [1, 2, 7])
def test_encode_rejects_an_image_of_few_gray_levels_and_says_how_many(levels: int) -> None:
    stripes = Image.fromarray(np.resize(np.arange(levels, dtype=np.uint8) * 20, (50, 60)))
    with pytest.raises(ImageRejected, match=f"only {levels} gray level{'s' if levels > 1 else ''}$"):
        encode(saved(stripes), 32, 90)
    eight = Image.fromarray(np.resize(np.arange(8, dtype=np.uint8) * 20, (50, 60)))
    assert encode(saved(eight), 32, 90).height == 32


@pytest.mark.parametrize("mode", ["P", "RGB", "CMYK", "LA", "RGBA"])
def test_encode_keeps_gray_values_when_the_source_has_another_pixel_format(
    radiograph: RadiographMaker, mode: str
) -> None:
    image = radiograph(2)
    content = (
        saved(image.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
        if mode != "CMYK"
        else saved(image.convert("RGB").convert("CMYK"), "JPEG", quality=100)
    )
    assert np.abs(pixels(content) - np.asarray(image).astype(int)).mean() < 2


@pytest.mark.parametrize("palette", [False, True])
def test_encode_makes_transparent_pixels_black(palette: bool) -> None:
    image = Image.new("RGBA", (32, 32), (255, 255, 255, 255))
    image.paste((255, 255, 255, 0), (0, 0, 16, 32))
    result = np.asarray(decode(saved(image.quantize(4) if palette else image))[0]).astype(int)
    assert result[:, :8].max() < 5
    assert result[:, 24:].min() > 250


def test_encode_turns_the_image_upright_when_exif_says_so(radiograph: RadiographMaker) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image = radiograph(3, height=40, width=60)
    content = saved(image, "JPEG", quality=100, exif=exif)
    encoded = encode(content, 320, 100)
    assert (encoded.width, encoded.height) == (encoded.source_width, encoded.source_height) == (40, 60)
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(pixels(content) - upright).mean() < 2


def test_encode_keeps_no_metadata_of_the_source(radiograph: RadiographMaker) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Dr. Artist"
    content = saved(radiograph(4), "JPEG", comment=b"NAME OF PATIENT", exif=exif, xmp=b"<x>NAME</x>", dpi=(300, 300))
    encoded = encode(content, 320, 90).content
    assert b"NAME" in content
    assert b"NAME" not in encoded
    assert b"Artist" not in encoded


def test_encode_of_a_large_jpeg_equals_a_full_decode_reduced(radiograph: RadiographMaker) -> None:
    image = radiograph(5, height=800, width=1000)
    result = pixels(saved(image, "JPEG", quality=98), shorter_side_px=100)
    expected = np.asarray(image.resize((125, 100), Image.Resampling.LANCZOS)).astype(int)
    assert result.shape == (100, 125)
    assert np.abs(result - expected).mean() < 1.5


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.95])
def test_encode_rejects_an_image_when_it_is_truncated(image_format: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 150), dtype=np.uint8))
    content = saved(noise, image_format)
    with pytest.raises(ImageRejected, match=reasons.DAMAGED):
        encode(content[: int(len(content) * part)], 64, 90)


def test_encode_rejects_a_jpeg_when_only_its_last_bytes_are_cut() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 150), dtype=np.uint8))
    content = saved(noise, "JPEG")
    for cut_bytes in (3, 10, 100):
        with pytest.raises(ImageRejected, match=reasons.DAMAGED):
            encode(content[:-cut_bytes], 320, 90)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 8_000), (65_501, 1), (2**31 - 1, 2**31 - 1)])
def test_decode_refuses_a_size_before_decoding_when_it_is_too_large(
    radiograph: RadiographMaker, width: int, height: int
) -> None:
    with pytest.raises(ImageRejected, match="declared size above 64 megapixels"):
        decode(declared_size(saved(radiograph(6)), width, height))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_decode_rejects_bytes_when_they_are_no_image(content: bytes, magic: bytes) -> None:
    with pytest.raises(ImageRejected):
        decode(magic + content)


def test_encode_file_says_why_when_there_is_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a radiograph")
    (tmp_path / "folder.jpg").mkdir()
    found = {
        name: encode_file(tmp_path / f"{name}.jpg", 320, 90) for name in ("empty", "text", "folder", "absent", "nul\0")
    }
    assert found == {
        "empty": reasons.EMPTY,
        "text": reasons.NOT_AN_IMAGE,
        "folder": reasons.UNREADABLE,
        "absent": reasons.MISSING,
        "nul\0": reasons.MISSING,
    }


def test_pass_through_keeps_a_small_plain_gray_jpeg_byte_by_byte(radiograph: RadiographMaker) -> None:
    image = radiograph(9)
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}):
        content = saved(image, "JPEG", quality=70, **options)
        encoded = encode(content, 60, 90, pass_through=True)
        assert encoded.content == content
        assert encoded.pixel_sum == np.asarray(Image.open(BytesIO(content))).astype(int).sum()
        assert encode(content, 60, 90).content != content


def test_pass_through_encodes_what_is_large_or_holds_more_than_gray_pixels(radiograph: RadiographMaker) -> None:
    image = radiograph(10)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = saved(image, "JPEG")
    others = {
        "large": saved(radiograph(10, 61, 61), "JPEG"),
        "color": saved(image.convert("RGB"), "JPEG"),
        "png": saved(image),
        "rotation": saved(image, "JPEG", exif=exif),
        "comment": saved(image, "JPEG", comment=b"NAME OF PATIENT"),
        "xmp": saved(image, "JPEG", xmp=b"<x>NAME</x>"),
        "profile": saved(image, "JPEG", icc_profile=b"NAME"),
        "behind the end": plain + b"NAME",
        "second image": plain + plain,
    }
    for name, content in others.items():
        encoded = encode(content, 60, 90, pass_through=True)
        assert encoded.content != content, name
        assert b"NAME" not in encoded.content, name
