"""`sternum demo`: the whole chain on simulated radiographs, by the commands that a user would type."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from infra import config as configuration
from infra.errors import RunFailed, UserError, require
from infra.extras import has_extra
from infra.log import say
from launch.cli import guarded
from sharding.simulation import datasets as simulated

_CONFIG: Final = Path(__file__).parent / "configs" / "demo.yaml"


@dataclass(frozen=True)
class DemoConfig:
    """Where the demo happens and how large it is.

    Args:
        out: folder for the images, the shards and the run; the same command again goes on where it stopped
        patients: simulated patients to pretrain on, about two radiographs each
        target_images: simulated radiographs to probe on, half of them with pneumonia
        epochs: passes over the pretraining set
        seed: determines the patients, the initial weights and the views
    """

    out: Path = Path("runs/demo")
    patients: int = 1150
    target_images: int = 1600
    epochs: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.patients >= 200, f"patients={self.patients} must be at least 200; use 1150")
        require(self.target_images >= 100, f"target_images={self.target_images} must be at least 100; use 1600")
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63 - 1; use 0")
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1; use 14")


def main(arguments: Sequence[str]) -> int:
    """Simulate, pack, verify, pretrain, probe and report."""
    config = configuration.parse(
        DemoConfig,
        arguments,
        command="demo",
        description="Run the whole chain on simulated radiographs, in about five minutes on two CPU cores.",
        examples=["sternum demo", "sternum demo --out=runs/demo-1 --seed=1"],
    )
    began = time.monotonic()
    _keep_configuration(config)
    raw, shards, run = config.out / "raw", config.out / "shards", config.out / "run"
    _simulate(config, raw)
    for dataset in ("chexpert", "cell"):
        _command("shard", dataset, f"--root={raw / dataset}", f"--out={shards / dataset}", "--shorter_side_px=112")
        _command("verify", str(shards / dataset))
    _pretrain(
        f"--config={_CONFIG}",
        f"--data.shards=[{shards / 'chexpert'}]",
        f"--run_folder={run}",
        f"--train.epochs={config.epochs}",
        f"--seed={config.seed}",
    )
    search = () if has_extra("ray") else ("--search=serial",)
    _command("probe", f"--run_folder={run}", f"--data.shards=[{shards / 'cell'}]", f"--seed={config.seed}", *search)
    _command("report", str(run))
    say(f"the demo took {time.monotonic() - began:.0f} s; curves: tensorboard --logdir={run / 'events'}")
    return 0


def _keep_configuration(config: DemoConfig) -> None:
    path = config.out / "demo.yaml"
    if path.exists() and configuration.load(DemoConfig, path) != config:
        raise UserError(f"{config.out} holds a demo with other options ({path}); choose another folder with --out")
    configuration.save(config, path)


def _simulate(config: DemoConfig, raw: Path) -> None:
    """Write both datasets; each is a whole folder or none, so one that stands there is not drawn again."""
    say(f"simulating radiographs in {raw}; they show that the machinery works and prove nothing about medicine")
    if not (raw / "chexpert").exists():
        simulated.write_chexpert(raw / "chexpert", config.patients, config.seed)
    if not (raw / "cell").exists():
        # Half of them are the test part: it costs seconds, and makes the interval of the scores narrower.
        test, val = config.target_images // 2, config.target_images // 8
        splits = {"train": config.target_images - test - val, "val": val, "test": test}
        simulated.write_cell(raw / "cell", splits, config.seed)


def _pretrain(*arguments: str) -> None:
    """Start one process a GPU, or two on the CPU, so that the negatives are gathered across processes."""
    gpus = min(torch.cuda.device_count(), 16)
    processes = 2 ** (gpus.bit_length() - 1) if gpus else 2  # the configuration's 16 lanes are shared evenly
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "launch.pretrain"]
    words = [*torchrun, *arguments]
    _run(
        ["torchrun", *words[1:]], [sys.executable, "-m", *words], OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")
    )


def _command(*words: str) -> None:
    _run(["sternum", *words], [sys.executable, "-m", "launch", *words])


def _run(shown: list[str], command: list[str], **environment: str) -> None:
    say(f"\n$ {shlex.join(shown)}")
    code = subprocess.run(command, env=os.environ | environment, check=False).returncode
    if code:
        raise RunFailed(f"the demo stopped, since `{shlex.join(shown)}` ended with exit code {code}; see above why")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
