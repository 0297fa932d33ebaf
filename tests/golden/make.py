"""Writes the golden files next to this script; run by the code of commit 0975d78, whose formats they hold.

    git worktree add /tmp/old 0975d78 && make -C /tmp/old install
    cd /tmp/old && PYTHONPATH=. .venv/bin/python PATH/TO/tests/golden/make.py

Every tensor of the checkpoint becomes a repetition of its first numbers before that code saves it, so that 150 MB
compress to some kilobytes. All images are simulated.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

GOLDEN = Path(__file__).parent
PERIOD = 61  # divides no layer's width, so that no two rows of a weight are the same
CELL_IMAGES = {"train": 24, "val": 8, "test": 16}


def main() -> None:
    code = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        simulate_and_pack()
        command(code, "verify", "shards/chexpert")
        pretrain(code)
        probe = "--presets=[gazda2021,rigorous] --few_labels=false --select=true --search=serial --executor=torchvision"
        command(
            code, "probe", "--run_folder=run", "--shards=[shards/cell]", "--bootstrap_resamples=100", *probe.split()
        )
        shutil.rmtree("run/checkpoints/step-1")
        for rest in ("run/features", "run/events", "run/.lock"):
            (shutil.rmtree if Path(rest).is_dir() else os.remove)(rest)  # neither is read by another release
        with tarfile.open(GOLDEN / "golden.tar.xz", "w:xz", preset=9) as archive:
            for folder in ("raw", "shards", "partial", "run"):
                archive.add(folder, filter=without_owner)


def simulate_and_pack() -> None:
    packing: Any = import_module("sharding.pack")  # by name, since this is the layout of the old commit
    simulated = import_module("sharding.datasets.simulated")
    simulated.write_chexpert(Path("raw/chexpert"), patients=7, seed=0, size_px=64)
    simulated.write_cell(Path("raw/cell"), CELL_IMAGES, seed=0, size_px=64)
    for dataset in ("chexpert", "cell"):
        packing.pack(pack_config(packing, dataset, f"shards/{dataset}"))

    kept = 0
    keep: Any = packing.keep

    def keep_two(*arguments: Any) -> None:
        nonlocal kept
        if kept == 2:
            raise KeyboardInterrupt
        keep(*arguments)
        kept += 1

    packing.keep = keep_two
    try:
        packing.pack(pack_config(packing, "chexpert", "partial"))
    except KeyboardInterrupt:
        return
    sys.exit("the packing ended before it was broken off")


def pack_config(packing: Any, dataset: str, out: str) -> Any:
    return packing.PackConfig(
        dataset,
        Path(f"raw/{dataset}"),
        out,
        shorter_side_px=48,
        shard_samples=4 if dataset == "chexpert" else None,
        workers=1,
    )


def pretrain(code: Path) -> None:
    """Pretrain two steps, then replace the tensors of both checkpoints."""
    options = (
        "--run_folder=run --data.shards=[shards/chexpert] --data.splits=[train] --data.global_batch=4 --data.lanes=2 "
        "--views.size_px=32 --model.backbone=resnet18 --train.epochs=2 --train.precision=fp32 --train.max_steps=2 "
        "--train.checkpoint_every_steps=1 --train.log_every_steps=1 --train.log_samples=true --executor=torchvision"
    )
    command(code, "pretrain", *options.split())
    checkpoints = import_module("ssl_core.checkpoint")
    for checkpoint in checkpoints.find_checkpoints(Path("run")):
        model, optimizer = checkpoints.load_state(checkpoint)
        model, optimizer = (
            {name: repeat(tensor) for name, tensor in tensors.items()} for tensors in (model, optimizer)
        )
        checkpoints.save_checkpoint(Path("run"), checkpoint.state, model, optimizer)


def repeat(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape that repeats the first numbers of this one."""
    first = tensor.flatten()[:PERIOD]
    return first.repeat(-(-tensor.numel() // PERIOD))[: tensor.numel()].reshape(tensor.shape)


def command(code: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "launch", *words], env=environment, check=True)


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
