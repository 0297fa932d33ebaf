"""`sternum shard --name` and `--exclude`, with the real commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch.cli import main as sternum
from sharding.format.copies import COPY
from sharding.format.manifest import decode_fingerprints, read_fingerprints
from sharding.images.encode import decode
from sharding.images.perceptual import fingerprint_of
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from tests.support.pictures import center_square, picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five pictures, of which class b holds one copy of a picture in a, and one center square."""
    for name, first in (("a", 0), ("b", 100)):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(5):
            picture(first + number).save(tmp_path / "root" / name / f"{number}.png")
    picture(0).save(tmp_path / "root" / "b" / "copy.jpg", quality=70)
    center_square(picture(1)).save(tmp_path / "root" / "b" / "square.png")
    return tmp_path / "root"


def shard(root: Path, out: str, *options: str) -> int:
    arguments = [f"--root={root}", f"--out={root.parent / out}", "--shorter_side_px=64", "--workers=1", *options]
    return sternum(["shard", "folder", *arguments])


def test_the_name_is_in_the_manifest_and_in_the_names_of_the_shards(root: Path) -> None:
    assert shard(root, "out", "--name=Hospital_A.2") == 0
    manifest = read_manifest(root.parent / "out")
    assert (manifest.dataset, manifest.name) == ("folder", "Hospital_A.2")
    assert all(item.name.startswith("Hospital_A.2-all-") for item in manifest.shards)
    assert verify(root.parent / "out", workers=1) == []


def test_the_default_name_is_the_datasets_and_changes_no_byte(root: Path) -> None:
    assert shard(root, "out") == shard(root, "named", "--name=folder") == 0
    folders = [root.parent / name for name in ("out", "named")]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert read_manifest(folders[0]).name == "folder"


def test_another_name_in_the_same_folder_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard(root, "out") == 0
    assert shard(root, "out", "--name=hospital-a") == 2
    assert "packed with name='folder', not 'hospital-a'; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "must have 1 to 40 letters"),
        ("a/b", "must have 1 to 40 letters"),
        ("-a", "must have 1 to 40 letters"),
        ("a b", "must have 1 to 40 letters"),
        ("a" * 41, "must have 1 to 40 letters"),
        ("klinik-köln", "must have 1 to 40 letters"),
        ("chexpert", "is the name of another dataset; try chexpert-folder"),
    ],
)
def test_a_name_that_is_no_name_is_refused_in_one_line(
    name: str, reason: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard(root, "out", f"--name={name}") == 2
    error = capsys.readouterr().err
    assert f"name={name} {reason}" in error
    assert error.count("\n") == 1
    assert not (root.parent / "out").exists()


def test_fingerprints_are_those_of_the_packed_pixels_and_verified(root: Path) -> None:
    assert shard(root, "out", "--image_format=png") == 0
    folder = root.parent / "out"
    shards = ShardSet([folder])
    for number, entry in enumerate(shards.shards):
        rows = read_fingerprints(folder, entry)
        assert rows is not None and len(rows) == entry.samples
        for row, stored in enumerate(rows):
            image, _ = decode(shards.read(number, row).tobytes())
            assert fingerprint_of(image) == stored.tobytes()
    path = folder / shards.shards[0].fingerprints_name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert any(
        f"{path.name} is not the file that manifest.json describes" in line for line in verify(folder, workers=1)
    )
    path.unlink()
    assert f"{path.name} is missing" in verify(folder, workers=1)


def test_copies_that_an_audit_lists_are_not_packed_and_are_counted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard(root, "whole") == 0
    whole, audit = root.parent / "whole", root.parent / "audit"
    assert sternum(["audit", str(whole), f"--out={audit}"]) == 0
    groups = json.loads((audit / "audit.json").read_text())["near_identical"]
    assert len(groups) == 2
    assert sorted(pair["center"] for group in groups for pair in group["pairs"]) == [False, True]
    capsys.readouterr()
    assert shard(root, "rest", f"--exclude={audit / 'audit.json'}") == 0
    assert "2 x copy of another image by the list of an audit" in capsys.readouterr().err
    rest = root.parent / "rest"
    assert {item.path for item in read_manifest(rest).rejected} == _leaving(groups)
    assert read_manifest(rest).samples == 10
    assert sternum(["audit", str(rest), f"--out={root.parent / 'again'}"]) == 0
    again = json.loads((root.parent / "again" / "audit.json").read_text())
    assert again["identical"] == again["near_identical"] == []


def test_a_set_of_copies_alone_is_refused_and_names_the_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard(root, "first", "--name=first") == shard(root, "second", "--name=second") == 0
    audit = root.parent / "audit"
    folders = [str(root.parent / name) for name in ("first", "second")]
    assert sternum(["audit", *folders, f"--out={audit}"]) == 1
    capsys.readouterr()
    assert shard(root, "out", "--name=second", f"--exclude={audit / 'audit.json'}") == 2
    error = capsys.readouterr().err
    assert f"can be packed: 12 x {COPY}; check exclude" in error
    assert not (root.parent / "out").exists()


def _leaving(groups: list[dict[str, list[dict[str, str]]]]) -> set[str]:
    """Return the paths that do not stay, which are all but the first by key."""
    for group in groups:
        staying = [image["key"] for image in group["images"] if image["stays"]]
        assert staying == [min(image["key"] for image in group["images"])]
    return {image["path"] for group in groups for image in group["images"] if not image["stays"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory; name the audit.json of an audit"),
        ("{", "is not a list of this version"),
        ('{"folders": [], "identical": []}', "is not a list of this version"),
        ('{"folders": [{"name": "x"}], "identical": [], "near_identical": []}', "covers x and not the set folder"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(
    content: str | None, reason: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root.parent / "audit.json"
    if content is not None:
        path.write_text(content)
    assert shard(root, "out", f"--exclude={path}") == 2
    error = capsys.readouterr().err
    assert f"{path} {reason}" in error
    assert error.count("\n") == 1
    assert not (root.parent / "out").exists()


def test_fingerprints_of_another_shard_are_refused(root: Path) -> None:
    assert shard(root, "out") == 0
    first, *_ = read_manifest(root.parent / "out").shards
    content = (root.parent / "out" / first.fingerprints_name).read_bytes()
    with pytest.raises(Exception, match="rows that its header declares"):
        decode_fingerprints(content[:-64], first, "prints.npy")
    assert np.all(decode_fingerprints(content, first, "prints.npy")["whole"].any(axis=1))
