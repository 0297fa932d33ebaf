import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from launch.cli import main
from sharding.packing.pack import PackConfig, pack
from sharding.simulation.datasets import write_cell


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cell(tmp_path / "cell", {"train": 12, "val": 4, "test": 8}, seed=0, size_px=64)
    return tmp_path / "cell"


def packed(root: Path) -> Path:
    out = root.parent / "shards"
    pack(PackConfig("cell", root, out, shorter_side_px=64, workers=1))
    return out


def test_audit_ends_with_0_and_a_list_when_nothing_crosses_a_border(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next((root / "train" / "PNEUMONIA").iterdir())
    shutil.copy(first, first.with_name("person999_virus_1.jpeg"))
    assert main(["audit", str(packed(root)), f"--out={tmp_path / 'found'}", "--workers=1"]) == 0
    written = capsys.readouterr()
    assert "25 images of" in written.out
    cells = [re.split(r"  +", line.strip()) for line in written.out.splitlines()]
    table = {name: counts for name, *counts in cells}
    assert table["shared patients"] == ["-", "0", "0"]
    assert table["groups of identical images"] == ["1", "0", "0"]
    assert table["extra copies in them"] == ["0", "0", "0"]
    assert "within one split with several patients: 1" in written.out
    assert "datasets and splits share nothing" in written.err
    result = json.loads((tmp_path / "found" / "audit.json").read_text())
    assert [len(group["images"]) for group in result["identical"]] == [2]
    assert "2 images within one split" in (tmp_path / "found" / "audit.html").read_text()


def test_audit_ends_with_1_and_one_line_when_images_cross_a_border(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next((root / "train" / "PNEUMONIA").iterdir())
    shutil.copy(first, root / "test" / "PNEUMONIA" / "person999_virus_1.jpeg")
    with Image.open(next((root / "train" / "NORMAL").iterdir())) as image:
        image.crop((1, 1, *image.size)).save(root / "val" / "NORMAL" / "IM-9999-0001.jpeg", quality=60)
    folder = packed(root)
    capsys.readouterr()
    assert main(["audit", str(folder), f"--out={tmp_path / 'found'}", "--workers=1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "sternum: error: datasets or splits share groups of identical images: 1, groups of near-ident"
    )
    assert error.count("\n") == 1
    result = json.loads((tmp_path / "found" / "audit.json").read_text())
    assert {group["spread"] for group in result["identical"] + result["near_identical"]} == {"across splits"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "shards is missing: sternum audit SHARDS"),
        (["/nowhere", "/elsewhere"], "/nowhere has no manifest.json"),
        (["/nowhere", "--workers=-1"], "workers=-1 must not be negative"),
        (["/nowhere", "--threshold=3"], "unknown key 'threshold'"),
    ],
)
def test_audit_answers_wrong_usage_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
