from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from launch import shard, verify
from launch.cli import main as sternum


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight images in the Cell layout, one of them empty."""
    random = np.random.default_rng(0)
    for class_name, name in (("NORMAL", "IM-{:04d}-0001"), ("PNEUMONIA", "person{}_virus_1")):
        folder = tmp_path / "cell" / "train" / class_name
        folder.mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(random.integers(0, 256, (24, 32), dtype=np.uint8))
            image.save(folder / f"{name.format(i)}.jpeg")
    (folder / "person0_virus_1.jpeg").write_bytes(b"")
    return tmp_path / "cell"


def test_shard_and_verify_say_what_they_did(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    arguments = ["cell", "--root", str(root), "--out", str(out), "--workers=1", "--allow_missing=true"]
    assert shard.main(arguments) == 0
    printed = capsys.readouterr().err
    assert "7 images of 7 patients in 2 shards (train 7)" in printed
    assert "rejected: 5, listed in manifest.json" in printed
    assert "4 x missing part of the dataset" in printed
    assert "1 x zero bytes" in printed
    assert "images/s" in printed
    assert verify.main([str(out)]) == 0
    assert "is whole: 7 samples in 2 shards" in capsys.readouterr().err
    assert shard.main(arguments) == 0
    printed = capsys.readouterr().err
    assert "holds this dataset already" in printed
    assert "images/s" not in printed


def test_verify_returns_1_and_a_list_when_something_differs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    shard.main(["cell", "--root", str(root), "--out", str(out), "--workers=1", "--allow_missing=true"])
    (out / "notes.txt").touch()
    next(out.glob("*.tar")).unlink()
    capsys.readouterr()
    assert sternum(["verify", str(out), "--workers=1"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(".tar is missing")
    assert lines[1].endswith("notes.txt is not in manifest.json")
    assert lines[2].startswith("sternum: error: ")
    assert "differs from its manifest in 2 ways" in lines[2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["mnist"], "dataset=mnist is unknown; use one of chexpert, chestxray14, cell"),
        (["chexpert"], r"is not dataset 'chexpert', which has train\.csv"),
        (["--dataset=cell"], "'dataset' takes no dashes; type only its value: sternum shard DATASET;"),
        (["cell", "--shorter_side=64"], "unknown key 'shorter_side'.* did you mean 'shorter_side_px'"),
        (["cell", "--jpeg_quality=0"], "jpeg_quality=0 must be between 1 and 100"),
        (["cell", "--jpeg_quality=high"], "jpeg_quality"),
        ([], "dataset"),
    ],
)
def test_shard_answers_wrong_usage_in_one_line_and_leaves_nothing(
    changed: list[str], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        shard.main([*changed, "--root", str(root), "--out", str(tmp_path / "shards")])
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cell"]


@pytest.mark.parametrize("main", [shard.main, verify.main])
def test_help_shows_options_and_examples(
    main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "examples:" in printed
    assert "workers" in printed
