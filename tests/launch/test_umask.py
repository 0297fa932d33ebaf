"""`umask 077` in front of a command keeps all that it writes from other users, as images of patients must be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharding.simulation.datasets import write_cell

PACK = (
    "shard cell --root=raw --out=shards --shorter_side_px=48",
    "audit shards --out=audit",
)
TRAIN = (
    "views shards --out=views.png --views.size_px=32",
    "pretrain run --data.shards=[shards] --data.splits=[train] --data.global_batch=4 --data.lanes=2 "
    "--views.size_px=32 --model.backbone=resnet18 --train.epochs=1 --train.max_steps=2",
    "probe run --data.shards=[shards] --folds=2 --few_labels=false --bootstrap_resamples=100 --search=serial",
    "report run",
    "table run",
)


@pytest.mark.parametrize("commands", [PACK, pytest.param(PACK + TRAIN, marks=pytest.mark.slow)], ids=["pack", "train"])
def test_all_that_commands_write_has_the_permissions_of_the_umask(commands: tuple[str, ...], tmp_path: Path) -> None:
    write_cell(tmp_path / "raw", {"train": 40, "val": 12, "test": 30}, seed=0, size_px=48)
    raw = set(tmp_path.rglob("*"))
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", f"umask 077; exec {sys.executable} -m launch {command}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1) if command.startswith("audit") else done.returncode == 0, done.stderr
    written = set(tmp_path.rglob("*")) - raw
    assert len(written) > len(commands)
    open_to_others = {path.relative_to(tmp_path).as_posix() for path in written if path.stat().st_mode & 0o077}
    assert not open_to_others
