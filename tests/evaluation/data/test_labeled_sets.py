"""Labels from a table that comes after the shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from evaluation.data.labeled_sets import ProbeData, ProbeLabels, label_table, open_labeled_sets, read_samples
from infra.errors import UserError
from sharding.datasets.dicom import DicomOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from sharding.simulation.datasets import write_cell
from tests.support.dicom_files import dicom_bytes

GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def key_file(path: Path, first: int = 0) -> Path:
    path.write_bytes(bytes(range(first, first + 32)))
    path.chmod(0o600)
    return path


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Three DICOM files of two patients, packed without labels."""
    for number, patient in enumerate(("0123", "0123", "0456")):
        path = tmp_path / "export" / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        uids: dict[str, Any] = {"StudyInstanceUID": UID(f"1.9.{patient[1:]}"), "SOPInstanceUID": UID(f"1.8.{number}")}
        path.write_bytes(dicom_bytes(np.roll(GRADIENT, number * 7), PatientID=patient, **uids))
    options = DicomOptions(key_file(tmp_path / "key"))
    pack(PackConfig("dicom", tmp_path / "export", tmp_path / "shards", workers=1, dicom=options))
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("join", "rows", "expected"),
    [
        ("PatientID", ("0123,yes", "0456,no"), [0, 1, 1]),
        ("StudyInstanceUID", ("1.9.123,no", "1.9.456,yes"), [0, 0, 1]),
        ("SOPInstanceUID", ("1.8.2,-1", "1.8.1,0", "1.8.0,1"), [-1, 0, 1]),
    ],
)
def test_identifiers_of_dicom_files_join_later_with_the_key_that_the_set_was_packed_with(
    join: Any, rows: tuple[str, ...], expected: list[int], hospital: Path, tmp_path: Path
) -> None:
    path = table(tmp_path / "later.csv", f"{join},mass", *rows)
    options = ProbeLabels(path, join, columns=["mass"], pseudonym_key=tmp_path / "key")
    manifest = read_manifest(hospital)
    assert manifest.labels == {}
    samples = read_samples(ShardSet([hospital]), manifest, label_table(options, manifest))
    assert sorted(labels["mass"] or 0 for labels in samples.labels) == expected


def test_another_key_or_none_is_refused_before_anything_is_read(hospital: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "later.csv", "PatientID,mass", "0123,1")
    manifest = read_manifest(hospital)
    with pytest.raises(
        UserError, match=r"join=PatientID needs the key that the set was packed with; add --.*_key=FILE"
    ):
        label_table(ProbeLabels(path, "PatientID", columns=["mass"]), manifest)
    other = ProbeLabels(path, "PatientID", columns=["mass"], pseudonym_key=key_file(tmp_path / "other", 1))
    with pytest.raises(UserError, match=r"other is not the key that the set was packed with"):
        label_table(other, manifest)
    by_path = ProbeLabels(table(tmp_path / "p.csv", "path,mass", "0.dcm,1"), "path", columns=["mass"])
    with pytest.raises(UserError, match=r"join=path: the images of dicom have none in their shards; join by another"):
        read_samples(ShardSet([hospital]), manifest, label_table(by_path, manifest))


def test_a_probe_sees_labels_that_a_table_joins_by_key(
    simulated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [before] = open_labeled_sets(ProbeData([str(simulated_shards)]))
    shards = before.shards
    keys = [shards.key(shard, row) for shard, samples in enumerate(shards.shard_samples) for row in range(samples)]
    path = table(
        tmp_path / "l.csv", "key,class", *(f"{key},{'odd' if i % 2 else 'even'}" for i, key in enumerate(keys))
    )
    [after] = open_labeled_sets(ProbeData([str(simulated_shards)], ProbeLabels(path, classes="class")))
    assert [labels["odd"] for labels in after.samples.labels] == [i % 2 for i in range(len(keys))]
    without = [{name: labels[name] for name in before.samples.labels[0]} for labels in after.samples.labels]
    assert without == before.samples.labels
    assert f"l.csv: {len(keys)} of {len(keys)} values of key match {len(keys)} of" in capsys.readouterr().err


def test_a_table_for_one_of_several_sets_names_it(simulated_shards: Path, tmp_path: Path) -> None:
    write_cell(tmp_path / "cell", {"train": 4, "test": 4}, seed=0, size_px=32)
    pack(PackConfig("cell", tmp_path / "cell", tmp_path / "shards", shorter_side_px=32, workers=1))
    path = table(tmp_path / "l.csv", "key,a", "b,1")
    sets: list[str | Path] = [simulated_shards, tmp_path / "shards"]
    for name, message in ((None, "is about one set; name it: --.*set=chexpert"), ("covid", "set=covid is none of the")):
        with pytest.raises(UserError, match=message):
            open_labeled_sets(ProbeData(sets, ProbeLabels(path, columns=["a"], set=name)))
