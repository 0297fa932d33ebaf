"""The errand of a hospital: an export of 200 radiographs in ten transfer syntaxes, packed and verified."""

import json
import os
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from infra.arrays import Integer
from launch import shard, verify
from sharding.datasets.pseudonyms import Pseudonyms
from sharding.images.grayscale import to_8_bit
from sharding.reading.manifests import read_manifest
from sharding.simulation.exposure import radiograph
from sharding.simulation.phantom import draw_anatomy
from tests.support.dicom_files import dicom_bytes, dicom_in

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
)
DEPTHS = (10, 12, 14, 16)
FILES, PATIENTS = 200, 50
KEY = bytes(range(32))


def detector_values(number: int) -> Integer:
    """A simulated radiograph as a detector of 10 to 16 bits stores it, signed in every third file."""
    patient, bits = number % PATIENTS, DEPTHS[number % len(DEPTHS)]
    gray = radiograph(0, "hospital", patient, number, draw_anatomy(0, "hospital", patient), (), "PA", 1, 64)
    grain = np.random.default_rng(number).integers(0, 1 << (bits - 8), gray.shape)
    values = (gray.astype(np.int64) << (bits - 8)) + grain
    return (values - (1 << (bits - 1))).astype(np.int16) if number % 3 == 0 else values.astype(np.uint16)


def export(root: Path) -> dict[str, Integer]:
    """Write the files as an archive exports them; return the gray that each must show, by path."""
    shown = {}
    for number in range(FILES):
        syntax, bits = SYNTAXES[number % len(SYNTAXES)], DEPTHS[number % len(DEPTHS)]
        values = detector_values(number)
        low, high = (int(end) for end in np.percentile(values, (1, 99)))
        elements: dict[str, object] = {"PatientID": f"{4_000_000 + number % PATIENTS}", "PatientAge": "094Y"}
        if number % 2:
            low, high = int(values.min()), int(values.max())
        else:
            window = {"WindowCenter": (low + high) / 2, "WindowWidth": high - low, "VOILUTFunction": "LINEAR_EXACT"}
            elements |= window
        gray = to_8_bit(values, low, high).astype(int)
        if number % 5 == 0:
            elements["PhotometricInterpretation"] = "MONOCHROME1"
            gray = 255 - gray
        path = root / f"DOE_JOHN_{number % PATIENTS}" / f"ST{number // PATIENTS}" / f"IM{number:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom_in(syntax, values, bits, **elements))
        shown[path.relative_to(root).as_posix()] = gray
    return shown


def test_an_export_in_ten_transfer_syntaxes_is_packed_with_exact_pixels_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = export(tmp_path / "export")
    (tmp_path / "export" / "DICOMDIR.txt").write_text("an index\n")
    (tmp_path / "export" / "report").write_bytes(dicom_bytes(np.zeros((8, 8), np.uint8), Modality="SR"))
    (tmp_path / "export" / "cut").write_bytes(dicom_in(JPEGLosslessSV1, detector_values(1), 12)[:-600])
    os.mkfifo(tmp_path / "export" / "pipe")
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    out = tmp_path / "out"
    options = ["--image_format=png", f"--dicom.pseudonym_key={key}", "--workers=2"]
    assert shard.main(["dicom", f"--root={tmp_path / 'export'}", f"--out={out}", *options]) == 0
    printed = capsys.readouterr().err
    assert f"{FILES} images of {PATIENTS} patients" in printed
    assert "do not say whether text is burned into their pixels" in printed
    assert verify.main([str(out), "--workers=1"]) == 0

    manifest = read_manifest(out)
    assert (manifest.samples, manifest.patients, len(manifest.rejected)) == (FILES, PATIENTS, 4)
    paths = {f"dicom-{Pseudonyms(KEY).of('path', path)}": path for path in shown}
    assert len(paths) == FILES
    for part in manifest.shards:
        content = (out / part.name).read_bytes()
        assert not any(text in content for text in (b"DOE", b"4000007"))
        with tarfile.open(out / part.name) as members:
            for member in members:
                file = members.extractfile(member)
                assert file is not None
                name, _, extension = member.name.rpartition(".")
                if extension == "json":
                    assert json.loads(file.read())["age"] == 90
                else:
                    image = np.asarray(Image.open(BytesIO(file.read()))).astype(int)
                    assert (image == shown.pop(paths[name])).all()
    assert not shown
