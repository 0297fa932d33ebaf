"""DICOM files made from pixels, in every transfer syntax that hospitals use, by encoders that Sternum does not use."""

from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

import imagecodecs
from pydicom import DataElement, Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from infra.arrays import Integer

NATIVE: Final = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def dicom_bytes(
    pixels: Integer, syntax: UID = ExplicitVRLittleEndian, encoded: bytes | None = None, **elements: object
) -> bytes:
    """Return a DICOM file of a gray image.

    Args:
        pixels: the stored values (height, width), of 8 or 16 bits
        syntax: its transfer syntax
        encoded: the content of PixelData, if it is not the pixels as they are
        elements: elements by keyword, as values or with their VR, which replace or, where None, remove those of a clean
            file
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    bits = 8 * pixels.dtype.itemsize
    values: dict[str, object] = {
        "SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.1.1"),
        "SOPInstanceUID": generate_uid(entropy_srcs=["test"]),
        "StudyInstanceUID": UID("1.2.3"),
        "Modality": "DX",
        "PatientID": "12345",
        "PatientName": "",
        "PatientSex": "F",
        "PatientAge": "058Y",
        "ViewPosition": "PA",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for keyword, value in (values | elements).items():
        if isinstance(value, DataElement):
            dataset.add(value)
        elif value is not None:
            setattr(dataset, keyword, value)
    little = syntax != ExplicitVRBigEndian
    dataset.PixelData = encoded or pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def dicom_in(syntax: UID, pixels: Integer, bits: int, **elements: object) -> bytes:
    """Return a DICOM file whose values need `bits` bits, encoded in a transfer syntax."""
    elements = {"BitsStored": bits, "HighBit": bits - 1} | elements
    encoded = None if syntax in NATIVE else encapsulate([codestream(syntax, pixels, bits)])
    return dicom_bytes(pixels, syntax, encoded, **elements)


def codestream(syntax: UID, pixels: Integer, bits: int) -> bytes:
    """Return pixels as a transfer syntax that is not native encodes them."""
    if syntax not in _SIGNED:  # the others know of no sign
        pixels = pixels.view(f"u{pixels.dtype.itemsize}") & ((1 << bits) - 1)
    return bytes(_ENCODERS[syntax](pixels, bits))


def decoded(syntax: UID, content: bytes) -> Integer:
    """Return the pixels of a lossy codestream, as another decoder than Sternum's gives them."""
    return _DECODERS[syntax](content)


def _by_pydicom(syntax: UID, **options: Any) -> Callable[[Integer, int], bytes | bytearray]:
    def encode(pixels: Integer, bits: int) -> bytes | bytearray:
        return get_encoder(syntax).encode(
            pixels,
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            photometric_interpretation="MONOCHROME2",
            bits_allocated=8 * pixels.dtype.itemsize,
            bits_stored=bits,
            pixel_representation=int(pixels.dtype.kind == "i"),
            **options,
        )

    return encode


def _lossless_jpeg(predictor: int) -> Callable[[Integer, int], bytes | bytearray]:
    def encode(pixels: Integer, bits: int) -> bytes | bytearray:
        return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)

    return encode


_ENCODERS: Final[dict[UID, Callable[[Integer, int], bytes | bytearray]]] = {
    JPEGBaseline8Bit: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, level=95),
    JPEGExtended12Bit: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=bits),
    JPEGLossless: _lossless_jpeg(6),
    JPEGLosslessSV1: _lossless_jpeg(1),
    RLELossless: _by_pydicom(RLELossless),
    JPEGLSLossless: _by_pydicom(JPEGLSLossless),
    JPEGLSNearLossless: _by_pydicom(JPEGLSNearLossless, jls_error=2),
    JPEG2000Lossless: lambda pixels, bits: imagecodecs.jpeg2k_encode(
        pixels, codecformat="J2K", reversible=True, bitspersample=bits
    ),
    JPEG2000: lambda pixels, bits: imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", level=80, bitspersample=bits),
    HTJ2KLossless: lambda pixels, bits: imagecodecs.htj2k_encode(pixels),
    HTJ2KLosslessRPCL: lambda pixels, bits: imagecodecs.htj2k_encode(pixels),
    HTJ2K: lambda pixels, bits: imagecodecs.htj2k_encode(pixels, reversible=False),
}
_DECODERS: Final[dict[UID, Callable[[bytes], Integer]]] = {
    JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
    HTJ2K: imagecodecs.htj2k_decode,
}
_SIGNED: Final = (RLELossless, JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
LOSSLESS: Final = (*NATIVE, *(syntax for syntax in _ENCODERS if syntax not in _DECODERS))
LOSSY: Final = tuple(_DECODERS)
