"""DICOM images: what is refused, and the gray that comes of the pixels."""

import re
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from sharding.images import dicom as reasons
from sharding.images.dicom_errors import DAMAGED, DicomRejected
from sharding.images.dicom_grayscale import NO_SLOPE, STRAY_BITS
from sharding.images.encode import ImageRejected, decode, encode
from sharding.images.grayscale import to_8_bit
from sharding.images.limits import TOO_LARGE
from tests.sharding.conftest import RadiographMaker
from tests.support.dicom_files import LOSSLESS, LOSSY, codestream, dicom_bytes, dicom_in

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
EIGHT_BITS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def lut(depth: int, entries: Any = None) -> Dataset:
    """A lookup table of 1000 entries of this depth, from value 500 on, that rise like a parabola."""
    if entries is None:
        entries = np.rint(np.linspace(0, 1, 1000) ** 2 * (2**depth - 1)).astype("<u2")
    item = Dataset()
    item.LUTDescriptor = [len(entries), 500, depth]
    item.LUTData = entries.tobytes()
    item["LUTData"].VR = "OW"
    item.ModalityLUTType = "US"
    return item


def gray(content: bytes) -> np.ndarray:
    image, size = decode(content)
    assert image.mode == "L"
    assert image.size == size
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("pixels", [EIGHT_BITS, RAMP])
def test_gray_is_the_same_in_every_native_transfer_syntax(pixels: Any, syntax: Any) -> None:
    expected = np.rint(pixels * (255 / pixels.max()))
    assert (gray(dicom_bytes(pixels, syntax)) == expected).all()


def test_gray_is_inverted_when_the_file_is_monochrome1() -> None:
    assert (
        gray(dicom_bytes(EIGHT_BITS, PhotometricInterpretation="MONOCHROME1")) == 255 - EIGHT_BITS.astype(int)
    ).all()
    window: dict[str, Any] = {"WindowCenter": 1000, "WindowWidth": 500}
    upright = gray(dicom_bytes(RAMP, **window))
    assert (gray(dicom_bytes(RAMP, PhotometricInterpretation="MONOCHROME1", **window)) == 255 - upright).all()


def test_gray_of_8_bits_stays_as_it_is_however_little_of_the_range_is_used() -> None:
    assert (gray(dicom_bytes(EIGHT_BITS // 4 + 20)) == EIGHT_BITS // 4 + 20).all()


def test_gray_covers_the_values_of_the_image_when_12_bits_are_declared_as_16() -> None:
    result = gray(dicom_bytes(RAMP // 2 + 300))
    assert (result.min(), result.max()) == (0, 255)
    assert (result == gray(dicom_bytes(RAMP // 2 + 300, BitsStored=12, HighBit=11))).all()


def test_gray_follows_the_first_window() -> None:
    result = gray(dicom_bytes(RAMP, WindowCenter=[2048, 9], WindowWidth=[1024, 9]))
    low, high = 2048 - 0.5 - 1023 / 2, 2048 - 0.5 + 1023 / 2
    assert (result == np.rint(np.clip((RAMP - low) / (high - low), 0, 1) * 255)).all()
    exact = gray(dicom_bytes(RAMP, WindowCenter=2048, WindowWidth=1024, VOILUTFunction="LINEAR_EXACT"))
    assert (exact == np.rint(np.clip((RAMP - 1536.0) / 1024, 0, 1) * 255)).all()
    sigmoid = gray(dicom_bytes(RAMP, WindowCenter=2048, WindowWidth=1024, VOILUTFunction="SIGMOID"))
    assert (sigmoid == np.rint(255 / (1 + np.exp(-4 * (RAMP - 2048.0) / 1024)))).all()


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 2048, "WindowWidth": 1024},
        {"WindowCenter": 2048, "WindowWidth": 1024, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 1000, "WindowWidth": 3001, "RescaleSlope": 2, "RescaleIntercept": -1000},
        {"VOILUTSequence": [lut(16)]},
        {"ModalityLUTSequence": [lut(16)]},
    ],
)
def test_gray_is_that_of_pydicom_where_pydicom_is_right(elements: dict[str, Any]) -> None:
    content = dicom_bytes(RAMP, BitsStored=12, HighBit=11, **elements)
    dataset = dcmread(BytesIO(content))
    shown = apply_voi_lut(apply_modality_lut(RAMP, dataset), dataset)
    assert (gray(content) == to_8_bit(shown, shown.min(), shown.max())).all()


def test_gray_falls_where_the_rescale_slope_is_negative() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
    elements: dict[str, Any] = {"RescaleSlope": -1, "RescaleIntercept": 4095, "BitsStored": 12, "HighBit": 11} | window
    result = gray(dicom_bytes(RAMP, **elements)).ravel()
    assert (np.diff(result) <= 0).all()
    assert (result[0], result[-1]) == (255, 0)
    dataset = dcmread(BytesIO(dicom_bytes(RAMP, **elements)))
    inverted = apply_voi_lut(apply_modality_lut(RAMP, dataset), dataset).ravel()
    assert (np.diff(inverted) >= 0).all()  # once pydicom mends this, its windowing can replace ours


@pytest.mark.parametrize("width", [0, 1, ""])
def test_gray_is_that_without_a_window_when_the_window_has_no_width(width: int | str) -> None:
    assert (gray(dicom_bytes(RAMP, WindowCenter=9, WindowWidth=width)) == gray(dicom_bytes(RAMP))).all()


def test_gray_applies_the_rescale_before_the_window() -> None:
    rescaled = dicom_bytes(RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000, WindowWidth=2001)
    assert (gray(rescaled) == np.rint(np.clip((2.0 * RAMP - 1000 + 0.5) / 2000, 0, 1) * 255)).all()
    assert (gray(dicom_bytes(RAMP, RescaleSlope=-1, RescaleIntercept=4095)) == 255 - gray(dicom_bytes(RAMP))).all()


def test_gray_of_signed_pixels_rises_through_zero() -> None:
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    assert (gray(dicom_bytes(signed)) == gray(dicom_bytes(RAMP))).all()


@pytest.mark.parametrize("depth", [8, 12])
@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
def test_gray_follows_a_lut_and_its_ends(name: str, depth: int) -> None:
    entries = np.rint(np.linspace(0, 1, 1000) ** 2 * (2**depth - 1)).astype("<u2")
    item = Dataset()
    item.LUTDescriptor = [1000, 500, depth]
    item.LUTData = entries.tobytes()
    item["LUTData"].VR = "OW"
    if name == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    expected = entries[np.clip(RAMP.astype(int) - 500, 0, 999)] * (255 / entries.max())
    elements: dict[str, Any] = {name: [item]}
    assert (gray(dicom_bytes(RAMP, BitsStored=12, HighBit=11, **elements)) == np.rint(expected)).all()


def test_gray_takes_the_lut_when_there_is_a_window_too() -> None:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.LUTData = list(range(4095, -1, -1))
    item["LUTData"].VR = "US"
    content = dicom_bytes(RAMP, WindowCenter=9, WindowWidth=9, VOILUTSequence=[item], BitsStored=12, HighBit=11)
    assert (gray(content) == 255 - gray(dicom_bytes(RAMP))).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_gray_of_padding_is_black_and_does_not_count_for_the_range(photometric: str) -> None:
    padded = RAMP % 3000 + 1000
    padded[:8] = 65535
    content = dicom_bytes(padded, PixelPaddingValue=65535, PhotometricInterpretation=photometric)
    result = gray(content)
    assert (result[:8] == 0).all()
    assert (result[8:].min(), result[8:].max()) == (0, 255)


@pytest.mark.parametrize("is_signed", [False, True])
def test_gray_of_left_aligned_pixels_is_that_of_right_aligned_ones(is_signed: bool) -> None:
    pixels = (RAMP - (is_signed << 11)).astype(np.int16 if is_signed else np.uint16)
    expected = gray(dicom_bytes(pixels, BitsStored=12, HighBit=11))
    assert (gray(dicom_bytes(pixels << 4, BitsStored=12, HighBit=15)) == expected).all()
    assert (gray(dicom_bytes(pixels << 2, BitsStored=12, HighBit=13)) == expected).all()


def test_gray_of_signed_pixels_needs_no_sign_in_the_bits_above() -> None:
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    expected = gray(dicom_bytes(signed, BitsStored=12, HighBit=11))
    assert (gray(dicom_bytes(signed & 0xFFF, BitsStored=12, HighBit=11)) == expected).all()


@pytest.mark.parametrize(("bit", "high_bit", "shift"), [(15, 11, 0), (12, 11, 0), (0, 15, 4)])
def test_gray_ignores_an_overlay_in_an_unused_bit_that_the_header_declares(bit: int, high_bit: int, shift: int) -> None:
    overlay = np.where(RAMP % 7 < 2, 1 << bit, 0).astype(np.uint16)
    content = dicom_bytes((RAMP << shift) | overlay, BitsStored=12, HighBit=high_bit)
    with pytest.raises(ImageRejected, match=STRAY_BITS):
        decode(content)
    dataset = dcmread(BytesIO(content))
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", bit)
    file = BytesIO()
    dataset.save_as(file)
    assert (gray(file.getvalue()) == gray(dicom_bytes(RAMP))).all()


@pytest.mark.parametrize("bits", [10, 11])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1])
def test_decode_refuses_values_of_more_bits_than_the_header_says(syntax: UID, bits: int) -> None:
    encoded = None if syntax == ExplicitVRLittleEndian else encapsulate([codestream(syntax, RAMP, 12)])
    with pytest.raises(ImageRejected, match=STRAY_BITS):
        decode(dicom_bytes(RAMP, syntax, encoded, BitsStored=bits, HighBit=bits - 1))


def test_gray_of_padding_is_black_when_its_word_is_no_value() -> None:
    padded = RAMP.copy()
    padded[:4] = 0xFFFF
    result = gray(dicom_bytes(padded, PixelPaddingValue=0xFFFF, BitsStored=12, HighBit=11))
    assert (result[:4] == 0).all()
    assert (np.diff(result[4:].ravel()) >= 0).all()
    assert result.max() == 255


def test_gray_of_padding_is_black_when_its_negative_value_is_written_as_unsigned() -> None:
    signed = (RAMP % 3000).astype(np.int16)
    signed[:8] = -2000
    result = gray(dicom_bytes(signed, PixelPaddingValue=DataElement(0x00280120, "US", 63536)))
    assert (result[:8] == 0).all()
    assert (result[8:].min(), result[8:].max()) == (0, 255)


def test_gray_follows_a_lut_whose_negative_first_value_is_written_as_unsigned() -> None:
    item = lut(12, np.arange(4096, dtype="<u2"))
    item.LUTDescriptor = [4096, 65536 - 1024, 12]
    rescale: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": [item]}
    assert (gray(dicom_bytes(RAMP, BitsStored=12, HighBit=11, **rescale)) == gray(dicom_bytes(RAMP))).all()


def test_encode_rejects_an_image_whose_window_is_beyond_all_values() -> None:
    with pytest.raises(ImageRejected, match="only 1 gray level"):
        encode(dicom_bytes(RAMP, WindowCenter=40000, WindowWidth=100), 64, 90)


def test_gray_is_that_of_the_values_in_a_jpeg_of_8_bits_in_a_cell_of_16() -> None:
    encoded = encapsulate([codestream(JPEGBaseline8Bit, EIGHT_BITS, 8)])
    wide = dicom_bytes(EIGHT_BITS, JPEGBaseline8Bit, encoded, BitsAllocated=16, BitsStored=8, HighBit=7)
    assert (gray(wide) == gray(dicom_bytes(EIGHT_BITS, JPEGBaseline8Bit, encoded))).all()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, r"DICOM is not gray \(RGB, channels: 3\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"DICOM is not gray \(PALETTE COLOR, channels: 1\)"),
        ({"NumberOfFrames": 2}, reasons.SEVERAL_FRAMES),
        ({"Rows": 17}, DAMAGED),
        ({"Rows": None}, reasons.NO_PIXELS),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, reasons.UNSUPPORTED_BITS),
        ({"BitsStored": 9}, reasons.UNSUPPORTED_BITS),
        ({"HighBit": 9}, "DICOM HighBit 9 does not fit 8 stored of 8 allocated bits"),
        ({"HighBit": 5}, "DICOM HighBit 5 does not fit 8 stored of 8 allocated bits"),
        ({"PixelRepresentation": None}, re.escape(reasons.NO_SIGN)),
        ({"Rows": 60_000, "Columns": 60_000}, TOO_LARGE),
        ({"RescaleSlope": "1e400", "RescaleIntercept": "0"}, DAMAGED),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, NO_SLOPE),
        ({"syntax": JPEGLosslessSV1}, DAMAGED),
        (
            {"syntax": UID("1.2.840.10008.1.2.4.100")},
            r"transfer syntax MPEG2 .*\(1\.2\.840\.10008\.1\.2\.4\.100\) cannot be decoded; export it uncompressed",
        ),
        ({"syntax": JPEGBaseline8Bit, "encoded": encapsulate([b"\xff\xd8\xff no JPEG"])}, DAMAGED),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_decode_says_why_when_a_dicom_is_not_one_gray_image(changed: Any, reason: Any) -> None:
    if changed.get("syntax") is not None and "encoded" not in changed:
        changed = changed | {"encoded": encapsulate([b"\xff\xd8\xff\xd9"])}
    with pytest.raises(ImageRejected, match=reason):
        decode(dicom_bytes(EIGHT_BITS, **changed))


def test_decode_refuses_a_dicom_whose_jpeg_is_of_another_size(radiograph: RadiographMaker) -> None:
    encoded = encapsulate([codestream(JPEGBaseline8Bit, np.asarray(radiograph(1, 60, 64)), 8)])
    with pytest.raises(ImageRejected, match="DICOM of 16 x 16 px, but its encoded image has 64 x 60 px"):
        decode(dicom_bytes(EIGHT_BITS, JPEGBaseline8Bit, encoded))


def test_decode_refuses_a_jpeg_that_was_scaled_to_8_bits_under_the_header_of_12() -> None:
    encoded = encapsulate([codestream(JPEGBaseline8Bit, EIGHT_BITS, 8)])
    content = dicom_bytes(EIGHT_BITS, JPEGBaseline8Bit, encoded, BitsAllocated=16, BitsStored=12, HighBit=11)
    with pytest.raises(ImageRejected, match="DICOM of 12 bits, but its encoded image has 8"):
        decode(content)


def test_decode_names_the_transfer_syntax_that_a_file_lacks() -> None:
    content = dicom_bytes(EIGHT_BITS).replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x99\x00UI")
    with pytest.raises(ImageRejected, match=re.escape(reasons.NO_SYNTAX)):
        decode(content)


def test_decode_refuses_a_deflated_file_that_grows_without_end() -> None:
    deflated = dicom_in(DeflatedExplicitVRLittleEndian, RAMP, 12)
    start = deflated.index(DeflatedExplicitVRLittleEndian.encode()) + 22
    compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(compressor.compress(bytes(1 << 24)) for _ in range(9)) + compressor.flush()
    with pytest.raises(ImageRejected, match=reasons.TOO_LARGE_INFLATED):
        decode(deflated[:start] + bomb)


def test_any_header_byte_that_a_disk_zeroed_gives_an_image_or_a_reason() -> None:
    content = dicom_in(ExplicitVRLittleEndian, EIGHT_BITS, 8)
    pixels = content.index(b"\xe0\x7f\x10\x00")
    for position in range(132, pixels):
        with suppress(ImageRejected):
            decode(content[:position] + b"\0" + content[position + 1 :])


DAMAGED_SYNTAXES = (ExplicitVRLittleEndian, *(syntax for syntax in (*LOSSLESS, *LOSSY) if syntax.is_encapsulated))


@pytest.mark.parametrize("syntax", DAMAGED_SYNTAXES, ids=lambda syntax: syntax.keyword)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_dicom_gives_an_image_or_a_reason_and_never_a_crash(
    syntax: UID, position: int, value: int, cut: bool, tmp_path: Path
) -> None:
    content = bytearray(dicom_in(syntax, EIGHT_BITS, 8, WindowCenter=100, WindowWidth=50))
    content[132 + position % (len(content) - 132)] = value
    damaged = bytes(content[: 132 + position % len(content)] if cut else content)
    (tmp_path / "file").write_bytes(damaged)
    with suppress(DicomRejected), (tmp_path / "file").open("rb") as file:
        reasons.read_header(file, ["PatientName"])
    try:
        image, _ = decode(damaged)
    except ImageRejected as rejected:
        assert "\n" not in str(rejected)
    else:
        assert image.mode == "L"
