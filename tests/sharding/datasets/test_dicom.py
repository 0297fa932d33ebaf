"""DICOM folders: pseudonyms, what identifies a patient, and what is counted."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from infra.errors import UserError
from sharding.datasets import dicom
from sharding.datasets.dicom import DicomOptions
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.images import dicom as reasons
from sharding.images.dicom_errors import DAMAGED
from sharding.images.encode import decode
from sharding.packing.pack import PackConfig, pack
from tests.sharding.conftest import samples_of
from tests.support.dicom_files import dicom_bytes, dicom_in

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
EIGHT_BITS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def key_file(path: Path, content: bytes = bytes(range(32)), mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def options(tmp_path: Path) -> DicomOptions:
    return DicomOptions(key_file(tmp_path / "key"))


@pytest.fixture
def root(tmp_path: Path) -> Callable[..., Path]:
    """Write files below a root."""

    def write(**files: bytes) -> Path:
        for name, content in files.items():
            path = tmp_path / "root" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "root"

    return write


def read_one(root: Path, allow_identifiers: bool = False) -> Sample | Rejection:
    (item,) = dicom.read(root, DicomOptions(key_file(root.parent / "key"), allow_identifiers))
    return item


def test_dicom_gives_patient_study_view_sex_and_age_but_no_identifier(
    root: Callable[..., Path], options: DicomOptions
) -> None:
    folder = root(DOE_JOHN__a=dicom_bytes(EIGHT_BITS), DOE_JOHN__b=dicom_bytes(EIGHT_BITS, ViewPosition="LL"))
    first, second = samples_of(dicom.read(folder, options))
    assert (first.view, first.sex, first.age, first.split) == ("frontal-pa", "F", 58, None)
    assert second.view == "lateral"
    assert first.patient == second.patient
    assert first.study == second.study
    assert first.key != second.key
    for text in ("12345", "1.2.3", "DOE"):
        assert text not in json.dumps(first.metadata()) + first.key


def test_packed_dicom_holds_no_identifier_and_the_pixels(root: Callable[..., Path], tmp_path: Path) -> None:
    content = dicom_bytes(RAMP, PatientName="DOE^JOHN", PatientBirthDate="19500101", AccessionNumber="777888999")
    folder = root(DOE_JOHN__a=content, notes=b"text")
    options = DicomOptions(key_file(tmp_path / "key"), allow_identifiers=True)
    config = PackConfig("dicom", folder, tmp_path / "out", workers=1, dicom=options)
    manifest = pack(config)
    assert manifest.options["dicom.allow_identifiers"] is True
    assert [(rejection.path, rejection.reason) for rejection in manifest.rejected] == [("notes", reasons.NOT_DICOM)]
    path = tmp_path / "out" / manifest.shards[0].name
    for text in (b"DOE", b"JOHN", b"12345", b"19500101", b"777888999"):
        assert text in content + b"DOE_JOHN"
        assert text not in path.read_bytes()
    with tarfile.open(path) as shard:
        (member,) = (member for member in shard if member.name.endswith(".jpg"))
        file = shard.extractfile(member)
        assert file is not None
        jpeg = file.read()
    shown = np.asarray(decode(content)[0]).astype(int)
    assert np.abs(np.asarray(Image.open(BytesIO(jpeg))).astype(int) - shown).mean() < 3


@pytest.mark.parametrize(
    "name",
    ["", "Anonymous", "ANONYMIZED^", "anon 12", "Patient^007", "XXXX", "16d7f894-55d7-4d95-8957-d18987f0e981", "S07"],
)
def test_dicom_packs_files_when_the_name_is_a_placeholder_or_a_code(name: str, root: Callable[..., Path]) -> None:
    assert isinstance(read_one(root(a=dicom_bytes(EIGHT_BITS, PatientName=name, BurnedInAnnotation="NO"))), Sample)


@pytest.mark.parametrize(
    ("element", "named"),
    [
        ({"PatientName": "Doe^John"}, r"a PatientName \(0010,0010\)"),
        ({"PatientName": "Doe"}, r"a PatientName \(0010,0010\)"),
        ({"PatientName": "Doe^John^^^2"}, r"a PatientName \(0010,0010\)"),
        ({"PatientBirthDate": "19500101"}, r"a PatientBirthDate \(0010,0030\)"),
        ({"PatientIdentityRemoved": "NO"}, r"PatientIdentityRemoved \(0012,0062\) = NO"),
        ({"BurnedInAnnotation": "YES"}, r"BurnedInAnnotation \(0028,0301\) = YES"),
    ],
)
def test_dicom_refuses_a_file_that_identifies_its_patient_unless_allowed(
    element: dict[str, Any], named: str, root: Callable[..., Path]
) -> None:
    folder = root(DOE_JOHN__a=dicom_bytes(EIGHT_BITS, **element))
    inode = (folder / "DOE_JOHN" / "a").stat().st_ino
    message = (
        rf"a file below .*root still has {named}; see which: find .*root -inum {inode}; .*--allow_identifiers=true"
    )
    with pytest.raises(UserError, match=message) as raised:
        read_one(folder)
    assert not any(part in str(raised.value).upper() for part in ("DOE", "JOHN", "1950"))
    assert isinstance(read_one(folder, allow_identifiers=True), Sample)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", reasons.NOT_DICOM),
        (b"a,b\n", reasons.NOT_DICOM),
        (bytes(128) + b"DICM", DAMAGED),
        (dicom_bytes(EIGHT_BITS, Modality="CT"), "modality CT, not CR, DX, RG"),
        (dicom_bytes(EIGHT_BITS, Modality=None), "modality unknown, not CR, DX, RG"),
        (dicom_bytes(EIGHT_BITS, PatientID=""), "no PatientID"),
        (dicom_bytes(EIGHT_BITS, PatientID="ANONYMOUS"), "no PatientID"),
        (dicom_bytes(EIGHT_BITS, PatientID="N/A"), "no PatientID"),
    ],
)
def test_dicom_counts_files_that_are_no_radiograph_of_a_patient(
    content: Any, reason: Any, root: Callable[..., Path]
) -> None:
    assert read_one(root(a=content)) == Rejection("a", reason)


def test_packing_counts_what_of_a_dicom_tree_cannot_be_packed(
    root: Callable[..., Path], options: DicomOptions, tmp_path: Path
) -> None:
    folder = root(
        a=dicom_bytes(EIGHT_BITS),
        b=dicom_bytes(EIGHT_BITS, NumberOfFrames=3),
        c=dicom_bytes(EIGHT_BITS)[:-100],
        d=dicom_bytes(EIGHT_BITS, Modality="SR"),
    )
    manifest = pack(PackConfig("dicom", folder, tmp_path / "out", workers=1, dicom=options))
    assert manifest.samples == 1
    assert Counter(rejection.reason for rejection in manifest.rejected) == {
        reasons.SEVERAL_FRAMES: 1,
        DAMAGED: 1,
        "modality SR, not CR, DX, RG": 1,
    }


def test_days_keep_the_time_between_studies_and_hide_the_dates(
    root: Callable[..., Path], options: DicomOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, dict[str, Any]] = {
        "a": {"PatientID": "1001", "StudyDate": "20180115"},
        "b": {"PatientID": "1001", "StudyDate": "20180314"},
        "c": {"PatientID": "1002", "StudyDate": "20180115"},
        "d": {"PatientID": "1002", "StudyDate": "00010101"},
        "e": {"PatientID": "1002", "StudyDate": ""},
    }
    folder = root(**{name: dicom_bytes(EIGHT_BITS, **elements) for name, elements in files.items()})
    assert [sample.day for sample in samples_of(dicom.read(folder, options))] == [None] * 5
    first, later, other, *unknown = (
        sample.day for sample in samples_of(dicom.read(folder, replace(options, days=True)))
    )
    assert first is not None
    assert later == first + 58
    assert other not in (None, first)
    assert unknown == [None, None]
    assert "warning: 2 of 5 files have no StudyDate" in capsys.readouterr().err


def test_pseudonyms_are_those_of_the_key_in_every_packing(root: Callable[..., Path], tmp_path: Path) -> None:
    folder = root(a=dicom_bytes(EIGHT_BITS), b=dicom_bytes(EIGHT_BITS, StudyInstanceUID="12345"))
    keys = [
        key_file(tmp_path / "first"),
        key_file(tmp_path / "copy"),
        key_file(tmp_path / "other", b"another key " * 2),
    ]
    first, copy, other = (samples_of(dicom.read(folder, DicomOptions(path))) for path in keys)
    assert first == copy
    for one, another in zip(first, other, strict=True):
        assert one.patient != another.patient
        assert one.study != another.study
        assert one.key != another.key
    assert first[1].patient != first[1].study  # equal identifiers of two kinds


def test_a_packing_without_a_key_is_refused(root: Callable[..., Path]) -> None:
    folder = root(a=dicom_bytes(EIGHT_BITS))
    with pytest.raises(UserError, match=r"pseudonym_key must name a file .*reversed; make one .*umask 077; head -c 32"):
        list(dicom.read(folder, DicomOptions()))


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (bytes(32), 0o640, r"readable only by its owner, but its mode is 0640; chmod 600"),
        (bytes(32), 0o604, r"mode is 0604"),
        (bytes(15), 0o600, r"must have 16 to 4096 bytes, but has 15; make it: \(umask 077; head"),
        (bytes(5000), 0o600, r"must have 16 to 4096 bytes, but has 5000"),
    ],
)
def test_a_key_that_is_weak_or_open_to_others_is_refused(
    content: bytes, mode: int, message: str, root: Callable[..., Path], tmp_path: Path
) -> None:
    options = DicomOptions(key_file(tmp_path / "key", content, mode))
    with pytest.raises(UserError, match=message):
        list(dicom.read(root(a=dicom_bytes(EIGHT_BITS)), options))


def test_a_key_that_is_no_file_is_refused(root: Callable[..., Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "absent", tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is not a file; make it"):
            list(dicom.read(root(a=dicom_bytes(EIGHT_BITS)), DicomOptions(path)))


def test_the_manifest_has_a_fingerprint_of_the_key_and_a_resumed_packing_needs_the_same_key(
    root: Callable[..., Path], tmp_path: Path
) -> None:
    folder, key = root(a=dicom_bytes(EIGHT_BITS)), bytes(range(32))
    config = PackConfig("dicom", folder, tmp_path / "out", workers=1, dicom=DicomOptions(key_file(tmp_path / "key")))
    fingerprint = pack(config).options["dicom.pseudonym_key"]
    assert isinstance(fingerprint, str)
    text = (tmp_path / "out" / "manifest.json").read_bytes()
    assert fingerprint.encode() in text
    assert key not in text
    assert key.hex().encode() not in text
    pack(PackConfig("dicom", folder, tmp_path / "out", dicom=DicomOptions(key_file(tmp_path / "moved"))))
    other = DicomOptions(key_file(tmp_path / "other", b"another key " * 2))
    with pytest.raises(UserError, match=r"packed with dicom\.pseudonym_key='[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        pack(PackConfig("dicom", folder, tmp_path / "out", dicom=other))


def test_files_that_do_not_say_whether_text_is_burned_in_are_counted(
    root: Callable[..., Path], options: DicomOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    silent, says = dicom_bytes(EIGHT_BITS), dicom_bytes(EIGHT_BITS, BurnedInAnnotation="NO")
    list(dicom.read(root(a=silent, b=says, c=silent, d=dicom_bytes(EIGHT_BITS, Modality="CT")), options))
    assert "warning: 2 of 3 files do not say whether text is burned into their pixels" in capsys.readouterr().err


def test_nothing_is_said_when_all_files_say_that_no_text_is_burned_in(
    root: Callable[..., Path], options: DicomOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    list(dicom.read(root(a=dicom_bytes(EIGHT_BITS, BurnedInAnnotation="NO")), options))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("age", "years"), [("089Y", 89), ("090Y", 90), ("119Y", 90), ("999Y", None), ("006M", 0.5)])
def test_ages_of_90_and_more_are_one(age: str, years: float | None, root: Callable[..., Path]) -> None:
    (sample,) = samples_of([read_one(root(a=dicom_bytes(EIGHT_BITS, PatientAge=age)))])
    assert sample.age == years


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_headers_are_read_in_every_native_syntax(syntax: UID, root: Callable[..., Path]) -> None:
    (sample,) = samples_of([read_one(root(a=dicom_in(syntax, RAMP, 12)))])
    assert (sample.view, sample.sex, sample.age) == ("frontal-pa", "F", 58)


def test_a_pipe_or_a_device_in_the_tree_is_rejected_and_never_opened(
    root: Callable[..., Path], options: DicomOptions
) -> None:
    folder = root(a=dicom_bytes(EIGHT_BITS))
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    items = list(dicom.read(folder, options))
    assert len(samples_of(item for item in items if isinstance(item, Sample))) == 1
    assert {item.path for item in items if isinstance(item, Rejection)} == {"pipe", "zero"}
