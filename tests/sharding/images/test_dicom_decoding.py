"""The stored values of DICOM images in every transfer syntax, against the pixels that were encoded."""

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
)

from infra.arrays import Integer
from sharding.images.dicom import open_image
from sharding.images.dicom_decoding import decode
from tests.support.dicom_files import LOSSLESS, LOSSY, codestream, decoded, dicom_bytes, dicom_in

DEPTHS = (8, 10, 12, 14, 16)
DEPTHS_OF_LOSSY_JPEG = {JPEGBaseline8Bit: (8,), JPEGExtended12Bit: (8, 12)}


def radiograph(bits: int, is_signed: bool = False) -> Integer:
    """Smooth values from the lowest to the highest that fit, with noise in the lowest bits."""
    y, x = np.mgrid[:48, :72]
    smooth = (1 + np.sin(x / 11) * np.cos(y / 7)) / 2
    noise = np.random.default_rng(bits).integers(0, 4, smooth.shape)
    values = np.clip(np.rint(smooth * (2**bits - 1)).astype(np.int64) + noise, 0, 2**bits - 1)
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return (values - (is_signed << (bits - 1))).astype(f"{'i' if is_signed else 'u'}{1 if bits == 8 else 2}")


def stored_values(content: bytes) -> Integer:
    image = open_image(content)
    words, cell = decode(image.dataset, image.syntax)
    return cell.values()[words]


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_values_are_those_that_were_encoded(syntax: UID, bits: int, is_signed: bool) -> None:
    pixels = radiograph(bits, is_signed)
    assert (stored_values(dicom_in(syntax, pixels, bits)) == pixels).all()


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(syntax, bits) for syntax in LOSSY for bits in DEPTHS_OF_LOSSY_JPEG.get(syntax, DEPTHS)],
    ids=lambda value: getattr(value, "keyword", value),
)
def test_values_of_a_lossy_image_are_those_of_another_decoder(syntax: UID, bits: int) -> None:
    pixels = radiograph(bits) // 2 + 2 ** (bits - 2)  # that no decoder goes beyond the bits
    expected = decoded(syntax, codestream(syntax, pixels, bits))
    values = stored_values(dicom_in(syntax, pixels, bits))
    tolerance = 3 if syntax == HTJ2K else 0  # its wavelet is computed in floating-point numbers
    assert np.abs(values - expected.astype(int)).max() <= tolerance
    assert np.abs(values - pixels.astype(int)).mean() < 2**bits / 100


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless, JPEG2000], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("is_signed", [False, True])
def test_values_have_the_sign_of_the_header_when_the_encoder_has_the_other(syntax: UID, is_signed: bool) -> None:
    pixels = radiograph(12, is_signed) // 2
    other = (pixels & 0xFFF).astype(np.uint16) if is_signed else (((pixels + 2048) & 0xFFF) - 2048).astype(np.int16)
    values = stored_values(
        dicom_bytes(pixels, syntax, encapsulate([codestream(syntax, other, 12)]), BitsStored=12, HighBit=11)
    )
    assert np.abs(values - pixels.astype(int)).max() <= (4 if syntax == JPEG2000 else 0)


@pytest.mark.parametrize("syntax", [JPEG2000, HTJ2K], ids=lambda syntax: syntax.keyword)
def test_values_of_a_lossy_image_stay_within_their_bits(syntax: UID) -> None:
    pixels = np.where(radiograph(10) > 511, 1023, 0).astype(np.uint16)  # edges, at which wavelets overshoot
    encoded = encapsulate([codestream(syntax, pixels, 16)])
    values = stored_values(dicom_bytes(pixels, syntax, encoded, BitsStored=10, HighBit=9))
    assert np.abs(values - pixels.astype(int)).max() < 512


def test_values_are_right_when_the_encoder_took_the_whole_cell() -> None:
    pixels = radiograph(12)
    encoded = encapsulate([codestream(JPEGLosslessSV1, pixels << 4, 16)])
    left = dicom_bytes(pixels, JPEGLosslessSV1, encoded, BitsStored=12, HighBit=15)
    assert (stored_values(left) == pixels).all()
