"""WebDataset tars of others: what becomes a sample, what is rejected, and what is refused."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from infra.errors import UserError
from infra.storage.files import sha256_file
from sharding.datasets.label_table import LabelOptions
from sharding.datasets.webdataset import WebdatasetOptions
from sharding.format.manifest import Manifest
from sharding.packing.pack import PackConfig, pack
from sharding.packing.verify import verify
from tests.sharding.conftest import CsvWriter, RadiographMaker
from tests.support.dicom_files import dicom_bytes

GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def jpeg(radiograph: RadiographMaker, seed: int) -> bytes:
    file = io.BytesIO()
    radiograph(seed).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path: Path, samples: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def plain_tar(path: Path, **members: bytes | None) -> Path:
    """Write members under any name; None is a link to a file outside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def packed(root: Path, **options: Any) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Pack; return the manifest and the JSON of each sample by its path."""
    config = PackConfig("webdataset", root, root.parent / "out", shorter_side_px=48, workers=1)
    manifest = pack(replace(config, webdataset=WebdatasetOptions(**options.pop("options", {})), **options))
    assert verify(root.parent / "out", workers=1) == []
    found = {}
    for shard in manifest.shards:
        with tarfile.open(root.parent / "out" / shard.name) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    meta = json.load(tar.extractfile(member) or io.BytesIO())
                    found[meta["path"]] = meta | {"key": member.name.removesuffix(".json")}
    return manifest, found


def reasons(manifest: Manifest) -> dict[str, str]:
    return {rejection.path: rejection.reason for rejection in manifest.rejected}


def test_tars_of_img2dataset_become_samples_with_the_labels_of_their_json(
    tmp_path: Path, radiograph: RadiographMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    root, number = tmp_path / "root", 0
    for tar in range(2):
        samples = []
        for row in range(3):
            meta = {
                "subject": 1000000 + number // 2,
                "age": 50.0 + number,
                "findings": ["Mass", "Edema"][:row],
                "dev": -1,
            }
            image = jpeg(radiograph, number)
            samples.append({"__key__": f"{tar:05d}{row:04d}", "jpg": image, "json": meta, "txt": "a caption"})
            number += 1
        write_tar(root / f"{tar:05d}.tar", samples)
        (root / f"{tar:05d}.parquet").write_bytes(b"PAR1")
    options = {"patient": "subject", "age": "age", "label": "findings", "labels": ["dev"]}
    manifest, found = packed(root, options=options)
    assert (manifest.samples, manifest.patients) == (6, 3)
    second = found["00001.tar/000010002.jpg"]
    assert (second["patient"], second["age"], second["split"]) == ("1000002", 55, None)
    assert second["labels"] == {"dev": -1, "Mass": 1, "Edema": 1}
    assert found["00000.tar/000000001.jpg"]["labels"] == {"dev": -1, "Mass": 1, "Edema": 0}
    assert found["00000.tar/000000000.jpg"]["labels"] == {"dev": -1, "Mass": None, "Edema": None}
    assert reasons(manifest) == {f"0000{tar}.parquet": "not a .tar file" for tar in range(2)}
    assert "root: members that are not used: txt (6)" in capsys.readouterr().err


def test_an_image_in_a_tar_has_the_bytes_that_the_same_file_has_in_a_folder(
    tmp_path: Path, radiograph: RadiographMaker
) -> None:
    images = {f"{number}.jpg": jpeg(radiograph, number) for number in range(4)} | {"5.dcm": dicom_bytes(GRADIENT)}
    (tmp_path / "raw" / "a").mkdir(parents=True)
    for name, image in images.items():
        (tmp_path / "raw" / "a" / name).write_bytes(image)
    plain_tar(tmp_path / "root" / "0.tar", **images)
    in_tar, _ = packed(tmp_path / "root")
    in_folder = pack(PackConfig("folder", tmp_path / "raw", tmp_path / "two", shorter_side_px=48, workers=1))

    def contents(folder: Path, manifest: Manifest) -> set[bytes]:
        found = set()
        for shard in manifest.shards:
            with tarfile.open(folder / shard.name) as tar:
                found |= {(tar.extractfile(info) or io.BytesIO()).read() for info in tar if info.name.endswith("jpg")}
        return found

    assert contents(tmp_path / "out", in_tar) == contents(tmp_path / "two", in_folder)
    assert (in_tar.pixel_mean, in_tar.source_bytes) == (in_folder.pixel_mean, in_folder.source_bytes)


def test_splits_come_from_the_names_of_tars_and_their_equal_keys_stay_apart(
    tmp_path: Path, radiograph: RadiographMaker, csv_file: CsvWriter
) -> None:
    seed = 0
    for split in ("train", "val"):
        samples = []
        for row in range(2):
            samples.append({"__key__": f"sample{row:06d}", "jpg": jpeg(radiograph, seed), "cls": row})
            seed += 1
        write_tar(tmp_path / "root" / f"xray-{split}-000000.tar", samples)
    csv_file(tmp_path / "l.csv", "path,late", "xray-val-000000.tar/sample000001.jpg,yes")
    later = LabelOptions(tmp_path / "l.csv", "path", columns=["late"])
    manifest, found = packed(tmp_path / "root", options={"label": "cls"}, labels=later)
    assert sorted((meta["split"], meta["labels"]["1"]) for meta in found.values()) == [
        ("train", 0),
        ("train", 1),
        ("val", 0),
        ("val", 1),
    ]
    assert len({meta["key"] for meta in found.values()}) == manifest.samples == 4
    assert found["xray-val-000000.tar/sample000001.jpg"]["labels"] == {"0": 0, "1": 1, "late": 1}
    (tmp_path / "root" / "xray-val-000000.tar").rename(tmp_path / "root" / "xray-000000.tar")
    with pytest.raises(UserError, match=r"xray-train-000000\.tar names the split train, xray-000000\.tar none or two"):
        packed(tmp_path / "root")


def test_what_is_no_sample_is_rejected_with_its_reason_and_nothing_is_unpickled(
    tmp_path: Path, radiograph: RadiographMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "planted",)

    image = jpeg(radiograph, 1)
    plain_tar(
        tmp_path / "root" / "0.tar",
        **{
            "good.jpg": image,
            "good.pyd": pickle.dumps(Planted()),
            "good.cls": b"1",
            "alone.json": b"{}",
            "1.2.3.jpg": image,
            "1.2.4.jpg": image,
            "README": b"text",
            "link.jpg": None,
            "damaged.jpg": image[:200],
            "text.jpg": b"not an image",
        },
    )
    manifest, found = packed(tmp_path / "root")
    assert list(found) == ["0.tar/good.jpg"]
    several = "one of several images of a sample; name the extension, or give each image a key without dots"
    assert reasons(manifest) == {
        "0.tar/alone.json": "sample without an image",
        "0.tar/1.2.3.jpg": several,
        "0.tar/1.2.4.jpg": several,
        "0.tar/README": "member without a key and an extension",
        "0.tar/link.jpg": "link, folder or special member",
        "0.tar/damaged.jpg": "truncated or damaged image",
        "0.tar/text.jpg": reasons(manifest)["0.tar/text.jpg"],
    }
    assert reasons(manifest)["0.tar/text.jpg"].startswith("not an image")
    assert not (tmp_path / "planted").exists()
    assert "members that are not used: cls (1), pyd (1); --label=cls makes classes of cls" in capsys.readouterr().err


def test_the_extension_names_one_of_several_images(tmp_path: Path, radiograph: RadiographMaker) -> None:
    image = {"image.jpg": jpeg(radiograph, 1), "mask.jpg": jpeg(radiograph, 2)}
    write_tar(tmp_path / "root" / "0.tar", [{"__key__": "a", **image}])
    _, found = packed(tmp_path / "root", options={"image": "image.jpg"})
    assert list(found) == ["0.tar/a.image.jpg"]


@pytest.fixture
def tar(tmp_path: Path, radiograph: RadiographMaker) -> Path:
    """A tar with three samples."""
    samples = [
        {"__key__": f"{row}", "jpg": jpeg(radiograph, row), "json": {"who": f"p{row}", "finding": "x"}}
        for row in range(3)
    ]
    return write_tar(tmp_path / "root" / "0.tar", samples)


def cut(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:9000])


def without_end(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        last = archive.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset])


def damaged_header(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        offset = archive.getmembers()[2].offset
    content = bytearray(tar.read_bytes())
    content[offset + 10] ^= 1
    tar.write_bytes(content)


def joined(tar: Path) -> None:
    tar.write_bytes(2 * tar.read_bytes())


def repeated(tar: Path) -> None:
    with tarfile.open(tar, "a") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("again.jpg"))


def no_tar(tar: Path) -> None:
    tar.write_bytes(b"<html>404</html>" * 100)


@pytest.mark.parametrize("harm", [cut, without_end, damaged_header, joined, repeated, no_tar])
def test_a_tar_that_is_not_whole_is_refused_in_one_line(harm: Any, tar: Path) -> None:
    harm(tar)
    with pytest.raises(
        UserError, match=r"root/0\.tar is not a whole WebDataset tar: .*; copy or write it again"
    ) as raised:
        packed(tar.parent)
    assert "\n" not in str(raised.value)
    assert not (tar.parent.parent / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patient": "pid"}, r"patient=pid is in no sample of .*root; the first one has who, finding"),
        ({"split": "finding"}, r"finding='x' \(0\.tar: 0 and 2 more\); a split is one of"),
        ({"labels": ["finding"]}, r"finding='x' .*; a label is 1, yes"),
    ],
)
def test_fields_that_do_not_mean_what_their_option_says_are_refused(
    options: dict[str, Any], message: str, tar: Path
) -> None:
    with pytest.raises(UserError, match=message):
        packed(tar.parent, options=options)


def test_a_folder_without_tars_and_compressed_tars_are_refused(tar: Path) -> None:
    tar.rename(tar.with_name("0.tar.gz"))
    with pytest.raises(UserError, match=r"0\.tar\.gz is compressed, .*; decompress it first"):
        packed(tar.parent)
    (tar.parent / "0.tar.gz").unlink()
    with pytest.raises(UserError, match=r"is not dataset 'webdataset', which has \*\.tar"):
        packed(tar.parent)


def test_a_packing_of_tars_resumes_and_is_done_when_nothing_changed(tar: Path) -> None:
    first, _ = packed(tar.parent)
    before = {path.name: sha256_file(path) for path in (tar.parent.parent / "out").iterdir()}
    again, _ = packed(tar.parent)
    assert again == first
    assert before == {path.name: sha256_file(path) for path in (tar.parent.parent / "out").iterdir()}
