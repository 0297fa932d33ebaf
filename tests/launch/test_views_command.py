from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.arrays import UInt8
from infra.configuration import config as configuration
from launch.cli import main
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.simulation.datasets import write_cell
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.spec import ViewSpec


def sheet(*arguments: str) -> UInt8:
    out = next(word.partition("=")[2] for word in arguments if word.startswith("--out="))
    assert main(["views", *arguments]) == 0
    return np.asarray(Image.open(out))


def test_views_writes_one_page_and_says_where(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "page.png"
    page = sheet(str(simulated_shards), f"--out={out}", "--count=2", "--views.size_px=48")
    assert capsys.readouterr().out == f"{out}\n"
    assert page.shape[2] == 3
    assert [path.name for path in out.parent.iterdir()] == ["page.png"]


def test_views_and_seed_of_a_pretrainings_configuration_are_taken(tmp_path: Path, simulated_shards: Path) -> None:
    config = PretrainConfig(
        run_folder=tmp_path / "run",
        data=DataConfig([str(simulated_shards)], global_batch=16, lanes=4),
        views=ViewSpec(size_px=32, crop_area=(0.1, 0.2)),
        seed=5,
        executor="torchvision",
    )
    configuration.save(config, tmp_path / "config.yaml")
    common = [str(simulated_shards), "--count=2"]
    from_file = sheet(*common, f"--out={tmp_path / 'a.png'}", f"--config={tmp_path / 'config.yaml'}")
    options = ["--views.size_px=32", "--views.crop_area=[0.1,0.2]", "--seed=5", "--executor=torchvision"]
    assert np.array_equal(from_file, sheet(*common, f"--out={tmp_path / 'b.png'}", *options))
    later = sheet(*common, f"--out={tmp_path / 'c.png'}", f"--config={tmp_path / 'config.yaml'}", "--epoch=1")
    assert (from_file != later).mean() > 0.1


def test_more_samples_than_there_are_shows_each_once(tmp_path: Path) -> None:
    write_cell(tmp_path / "raw", {"train": 4}, seed=0, size_px=64)
    pack(PackConfig("cell", tmp_path / "raw", tmp_path / "packed", shorter_side_px=64, workers=1))
    common = [str(tmp_path / "packed"), "--executor=torchvision"]
    pages = [sheet(*common, f"--out={tmp_path / 'page.png'}", f"--count={count}") for count in (1, 2, 4, 9)]
    row_px = len(pages[1]) - len(pages[0])
    assert [len(page) - len(pages[0]) for page in pages] == [0, row_px, 3 * row_px, 3 * row_px]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere"),
        (["SHARDS", "--out=page.jpg"], "out=page.jpg must end in .png; try page.png"),
        (["SHARDS", "--count=0"], "count=0 must be between 1 and 20"),
        (["SHARDS", "--epoch=-1"], "epoch=-1 must be"),
        (["SHARDS", "--views.size_px=3"], "views.size_px=3 must be"),
        (["SHARDS", "--sed=3"], "unknown key 'sed'"),
        (["SHARDS", "--out=/proc/nowhere/page.png"], "cannot write /proc/nowhere/page.png"),
    ],
)
def test_a_mistake_ends_in_one_line(
    arguments: list[str],
    message: str,
    simulated_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(simulated_shards) if word == "SHARDS" else word for word in arguments]
    assert main(["views", *words]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert message in written.err
    assert list(tmp_path.iterdir()) == []


def test_key_that_neither_command_knows_is_refused(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\nview: {size_px: 32}\n")
    assert main(["views", str(simulated_shards), f"--config={tmp_path / 'config.yaml'}"]) == 2
    assert "view" in capsys.readouterr().err
