"""Healthy and sick pretrainings side by side, for docs/monitoring.md: each fault is provoked in a small real run.

health   healthy               one process
         rate too high         the same with 600 times the learning rate
         temperature too low   the same with a temperature at which only the nearest negatives count
speed    healthy               two processes
         starved rank          the second one reads each image late, as from a slow disk
         slow rank             the second one is held up in every tenth step, as by another program

The metrics are those that the runs wrote; the figure beside the JSON file is drawn from it, also without new runs
(--redraw). The images are simulated radiographs unless --shards names a packed set.
"""

import argparse
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch.multiprocessing.spawn import start_processes

from benchmarks.common import machine
from infra.errors import RunFailed
from infra.monitoring.metrics import read_metrics
from infra.ranks.processes import Ranks
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.open_shard import OpenShard
from sharding.simulation.datasets import write_cell
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.loss.config import LossConfig
from ssl_core.model.encoder import ModelConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.learning_step import Learned, learn
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch
from ssl_core.views.spec import ViewSpec

_LATE_READ_S: Final = 0.05  # a rank reads half of the global batch in a step
_HELD_UP_S: Final = 2.0
_HEALTH: Final[dict[str, dict[str, Any]]] = {
    "healthy": {},
    "rate too high": {"optim": OptimConfig(learning_rate=0.3)},
    "temperature too low": {"loss": LossConfig(temperature=0.01)},
}
_SPEED: Final = ("healthy", "starved rank", "slow rank")
_HEALTH_TAGS: Final = (
    "loss",
    "health/positive_similarity",
    "health/negative_similarity",
    "health/projection_deviation",
    "health/projection_rankme",
    "health/backbone_rankme",
    "optim/gradient_norm",
    "optim/weight_norm",
)
_SPEED_TAGS: Final = (
    "speed/images_per_s",
    "speed/step_p50_s",
    "speed/step_p99_s",
    "speed/data_wait_share",
    "speed/data_wait_share_max",
    "speed/data_wait_max_rank",
)
_TAGS: Final = {"health": _HEALTH_TAGS, "speed": _SPEED_TAGS}
_LOGARITHMIC: Final = ("loss", "optim/gradient_norm", "optim/weight_norm")

Lines = list[dict[str, float]]


def configuration(shards: str, run: Path, options: argparse.Namespace) -> PretrainConfig:
    """Return the healthy run."""
    return PretrainConfig(
        run_folder=run,
        data=DataConfig([shards], global_batch=options.global_batch, lanes=2),
        views=ViewSpec(size_px=options.size_px),
        model=ModelConfig(options.backbone),
        train=TrainConfig(
            epochs=10**6,
            precision="fp32",
            checkpoint_every_epochs=10**6,
            log_every_steps=options.log_every_steps,
            max_steps=options.steps,
            device="cpu",
            rollbacks=0,
        ),
        executor="torchvision",
    )


def take_part(rank: int, world: int, config: PretrainConfig, fault: str, port: int = 0) -> None:
    """Run one rank; the last one has the fault."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    is_sick = rank == world - 1

    def held_up(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        if is_sick and fault == "slow rank" and batch.step % 10 == 0:
            time.sleep(_HELD_UP_S)
        return learn(engine, batch, agreed, rate)

    if is_sick and fault == "starved rank":
        read = OpenShard.read

        def read_late(shard: OpenShard, row: int) -> Any:
            time.sleep(_LATE_READ_S)
            return read(shard, row)

        OpenShard.read = read_late  # type: ignore[method-assign, assignment]
    try:
        pretrain(config, Ranks(rank, world, rank, world), learning_step=held_up)
    except RunFailed as error:  # as a rate that is too high may end
        print(f"{fault}: {error}", flush=True)


def metrics_of(config: PretrainConfig, fault: str, world: int) -> Lines:
    """Run `world` processes to the end and return what they logged."""
    if world == 1:
        take_part(0, 1, config, fault)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (world, config, fault, port)
        start_processes(take_part, arguments, nprocs=world, start_method="spawn")  # type: ignore[no-untyped-call]
    return read_metrics(config.run_folder)


def draw(runs: Mapping[str, Sequence[Mapping[str, float]]], tags: Sequence[str], path: Path) -> None:
    """Draw one panel for each tag, with a curve for each run; the loss with its chance line."""
    mpl.rcParams.update({"svg.hashsalt": "sternum", "font.size": 8})
    figure, axes = plt.subplots(-(-len(tags) // 2), 2, figsize=(7.5, 0.85 * len(tags)))
    for panel, tag in zip(axes.flat, tags, strict=True):
        for name, lines in runs.items():
            values = np.array([line[tag] for line in lines], float)  # null becomes NaN
            panel.plot([line["step"] for line in lines], values, label=name)
        if tag == "loss":
            first = next(iter(runs.values()))
            panel.plot([line["step"] for line in first], [line["loss/chance"] for line in first], "k:", label="chance")
        panel.set_title(tag, fontsize=8)
        if tag in _LOGARITHMIC:
            panel.set_yscale("log")
    axes.flat[0].legend(fontsize=7)
    figure.supxlabel("step", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def health_runs(shards: str, folder: Path, options: argparse.Namespace) -> dict[str, Lines]:
    """Make the runs in one process."""
    config = configuration(shards, folder / "run", options)
    return {
        fault: metrics_of(replace(config, run_folder=folder / f"run-{number}", **change), fault, world=1)
        for number, (fault, change) in enumerate(_HEALTH.items())
    }


def speed_runs(shards: str, folder: Path, options: argparse.Namespace) -> dict[str, Lines]:
    """Make the runs in two processes, of half as many steps."""
    config = configuration(shards, folder / "run", options)
    train = replace(config.train, log_every_steps=5, max_steps=options.steps // 2)
    return {
        fault: metrics_of(replace(config, run_folder=folder / f"run-{number}", train=train), fault, world=2)
        for number, fault in enumerate(_SPEED)
    }


def _kept(line: dict[str, float], tags: Sequence[str]) -> dict[str, float | None]:
    """Return the tags of a line; what is not finite becomes null, as in metrics.jsonl."""
    return {tag: line[tag] if math.isfinite(line[tag]) else None for tag in tags if tag in line}


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Make all runs of a kind; return the content of the JSON file."""
    with tempfile.TemporaryDirectory(prefix="sternum-sick-") as name:
        folder, shards = Path(name), options.shards
        if shards is None:
            write_cell(folder / "cell", {"train": options.images}, seed=0, size_px=64)
            pack(PackConfig("cell", folder / "cell", folder / "shards", 64))
            shards = str(folder / "shards")
        runs = (health_runs if options.kind == "health" else speed_runs)(shards, folder, options)
    return as_json(runs, options)


def as_json(runs: dict[str, Lines], options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the JSON file."""
    tags = ("step", "epoch", "loss/chance", "run/collapsed", *_TAGS[options.kind])
    return {
        "images": f"simulated, {options.images} of 64 px" if options.shards is None else options.shards,
        "settings": {name: getattr(options, name) for name in ("backbone", "size_px", "global_batch", "steps")},
        "machine": machine("torch"),
        "runs": {fault: [_kept(line, tags) for line in lines] for fault, lines in runs.items()},
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("kind", choices=list(_TAGS))
    words.add_argument("--out", type=Path, required=True, help="JSON file; the figure is written beside it")
    words.add_argument("--shards", help="a packed set instead of simulated radiographs")
    words.add_argument("--images", type=int, default=128, help="simulated radiographs")
    words.add_argument("--backbone", default="timm/test_resnet", help="a small one by default")
    words.add_argument("--size_px", type=int, default=32)
    words.add_argument("--global_batch", type=int, default=32)
    words.add_argument("--steps", type=int, default=80)
    words.add_argument("--log_every_steps", type=int, default=2)
    words.add_argument("--redraw", action="store_true", help="draw the figure of an existing JSON file again")
    return words


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs, write their metrics, and draw the figure beside them."""
    options = parser().parse_args(arguments)
    if not options.redraw:
        write_atomic(options.out, json.dumps(run_all(options), indent=1) + "\n")
    draw(json.loads(options.out.read_text())["runs"], _TAGS[options.kind], options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
