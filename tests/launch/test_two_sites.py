"""Two hospitals whose files have the same names, packed and pretrained together."""

import json
from pathlib import Path

import pytest

from infra.monitoring.status import read_status
from launch.cli import main as sternum
from tests.support.pictures import picture
from tests.support.tiny_resnet import TINY_RESNET

PRETRAIN = (
    f"--data.global_batch=8 --data.lanes=2 --views.size_px=32 --model.backbone={TINY_RESNET} --train.epochs=1 "
    "--train.max_steps=1 --train.precision=fp32 --train.log_samples=true --executor=torchvision"
)


def pack_sites(folder: Path, *, with_names: bool) -> list[Path]:
    """Pack normal/0.png to normal/3.png of two sites, whose pictures differ."""
    shards = []
    for site in ("a", "b"):
        root = folder / f"site-{site}"
        (root / "normal").mkdir(parents=True)
        for number in range(4):
            picture(ord(site) * 10 + number).save(root / "normal" / f"{number}.png")
        shards.append(folder / f"shards-{site}")
        name = [f"--name=hospital-{site}"] if with_names else []
        arguments = [f"--root={root}", f"--out={shards[-1]}", "--shorter_side_px=48", "--workers=1", *name]
        assert sternum(["shard", "folder", *arguments]) == 0
    return shards


def pretrain(run: Path, shards: list[Path]) -> int:
    return sternum(["pretrain", str(run), f"--data.shards=[{shards[0]},{shards[1]}]", *PRETRAIN.split()])


def test_under_one_name_they_are_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = pack_sites(tmp_path, with_names=False)
    capsys.readouterr()
    assert pretrain(tmp_path / "run", shards) == 2
    error = capsys.readouterr().err
    assert "both have the name 'folder', but their keys name different pictures (4 of 4 compared)" in error
    assert "pack one of them with another --name, such as folder-b" in error
    assert error.count("\n") == 1
    status = read_status(tmp_path / "run")
    assert status is not None and status.state == "refused"


def test_under_their_names_they_are_eight_samples_with_eight_draws(tmp_path: Path) -> None:
    assert pretrain(tmp_path / "run", pack_sites(tmp_path, with_names=True)) == 0
    (step,) = [json.loads(line) for line in (tmp_path / "run/samples/rank-0.jsonl").read_text().splitlines()]
    assert len(set(step["samples"])) == 8
