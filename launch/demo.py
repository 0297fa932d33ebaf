"""`sternum demo`: runs the whole pipeline on simulated radiographs with the commands that a user types."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.configuration import config as configuration
from infra.configuration.options import require_at_least, require_seed
from infra.errors import RunFailed, UserError
from infra.extras import has_extra
from infra.log import say
from sharding.simulation import datasets as simulated


@dataclass(frozen=True)
class DemoConfig:
    """The demo's folder and size.

    Args:
        out: folder for the images, the shards and the run; the same command continues an interrupted demo
        patients: simulated patients for pretraining, with about two radiographs each; at least 200
        target_images: simulated radiographs for the probe, half of them with pneumonia; at least 200
        epochs: passes over the pretraining images
        seed: determines the patients, the initial weights and the views
    """

    out: Path = Path("runs/demo")
    patients: int = 1150
    target_images: int = 1600
    epochs: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, "patients", 200, "use 1150")
        require_at_least(self, "target_images", 100, "use 1600")
        require_at_least(self, "epochs", 1, "use 5")
        require_seed(self)


def main(arguments: Sequence[str]) -> int:
    """Simulate, pack, verify, pretrain, probe and report."""
    config = configuration.parse(
        DemoConfig,
        arguments,
        command="demo",
        description="Run the whole pipeline on simulated radiographs, in four to seven minutes on two CPU cores.",
        examples=["sternum demo", "sternum demo --out=runs/demo-1 --seed=1"],
    )
    began = time.monotonic()
    _save_options(config)
    raw, shards, run = config.out / "raw", config.out / "shards", config.out / "run"
    _simulate(config, raw)
    for dataset in ("chexpert", "cell"):
        _command("shard", dataset, f"--root={raw / dataset}", f"--out={shards / dataset}", "--shorter_side_px=112")
        _command("verify", str(shards / dataset))
    _pretrain(
        str(run),
        "--config=demo",
        f"--data.shards=[{shards / 'chexpert'}]",
        f"--train.epochs={config.epochs}",
        f"--seed={config.seed}",
    )
    search = () if has_extra("ray") else ("--search=serial",)
    sets = f"--data.shards=[{shards / 'cell'}]"
    _command("probe", str(run), sets, "--untrained_seeds=3", f"--seed={config.seed}", *search)
    _command("report", str(run))
    say(f"the demo took {time.monotonic() - began:.0f} s; curves: tensorboard --logdir={run / 'events'}")
    return 0


def _save_options(config: DemoConfig) -> None:
    path = config.out / "demo.yaml"
    if path.exists() and configuration.load(DemoConfig, path, command="demo") != config:
        raise UserError(f"{config.out} holds a demo with other options ({path}); choose another folder: --out=FOLDER")
    configuration.save(config, path)


def _simulate(config: DemoConfig, raw: Path) -> None:
    """Write both datasets. A folder that exists is complete, so it is not drawn again."""
    say(f"simulating radiographs in {raw}; they show that Sternum works and prove nothing about medicine")
    if not (raw / "chexpert").exists():
        simulated.write_chexpert(raw / "chexpert", config.patients, config.seed)
    if not (raw / "cell").exists():
        # Half of the images are for the test: that costs seconds and narrows the confidence intervals.
        test, val = config.target_images // 2, config.target_images // 8
        splits = {"train": config.target_images - test - val, "val": val, "test": test}
        simulated.write_cell(raw / "cell", splits, config.seed)


def _pretrain(*arguments: str) -> None:
    """Start one process for each GPU, or two on the CPU, so that negatives are gathered across processes.

    They meet in a file of a private folder and on the loopback address, so the demo opens no port to the network and
    needs no host name that resolves.
    """
    import torch  # noqa: PLC0415  # --help and mistakes need no torch

    gpus = min(torch.cuda.device_count(), 16)
    processes = 2 ** (gpus.bit_length() - 1) if gpus else 2  # a power of two divides the configuration's 16 lanes
    with tempfile.TemporaryDirectory(prefix="sternum-demo-") as folder:
        meeting = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder}/meeting"]
        words = [
            *meeting,
            "--local-addr=127.0.0.1",
            f"--nproc-per-node={processes}",
            "-m",
            "launch.pretrain",
            *arguments,
        ]
        _run(
            ["torchrun", *words],
            [sys.executable, "-m", "torch.distributed.run", *words],
            OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # otherwise torchrun listens on all addresses
        )


def _command(*words: str) -> None:
    _run(["sternum", *words], [sys.executable, "-m", "launch", *words])


def _run(shown: list[str], command: list[str], **environment: str) -> None:
    say(f"\n$ {shlex.join(shown)}")
    code = subprocess.run(command, env=os.environ | environment, check=False).returncode
    if code:
        raise RunFailed(f"the demo stopped: `{shlex.join(shown)}` ended with exit code {code}; see the error above")
