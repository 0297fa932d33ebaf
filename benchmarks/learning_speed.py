"""Samples/s and CPU time of a training step: Sternum, lightly's SimCLR, and the bare step, in turns on one machine.

sternum, ...    the real `pretrain` from shards, with the recipe lightly_by_options, in several layouts
lightly, ...    the loop of learning_peers: views from a DataLoader with one worker
bare, ...       forward, backward and update of the same encoder on one batch in memory, in plain PyTorch

Every way has its own processes. A figure counts the steps after the first ones, and the CPU time of all processes and
threads of the way in these steps. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from benchmarks.common import machine, table
from benchmarks.learning_ground import SIDE_PX, all_pixels, shard_folders
from benchmarks.learning_peers import train as train_peer
from benchmarks.learning_recipes import COMMON, STERNUM
from infra.configuration.config import parse
from infra.ranks.devices import has_bf16_matrix_units
from infra.ranks.processes import Ranks
from infra.storage.files import write_atomic
from launch.builtin_configs import PRETRAIN_CONFIGS
from launch.cli import run_command
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.model.cpu_convolution import use_matrix_products
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.learning_step import Learned, learn
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch

BATCH: Final = 128
PRECISION: Final = "bf16" if has_bf16_matrix_units(torch.device("cpu")) else "fp32"  # as train.precision=auto chooses
OTHER: Final = "fp32" if PRECISION == "bf16" else "bf16"


class Rate(NamedTuple):
    """What a way reaches; CPU time is that of all its processes and threads."""

    images_per_s: float
    cpu_ms_per_image: float


@dataclass(frozen=True)
class Bare:
    """A bare step."""

    channels: int = 1
    channels_last: bool = True
    precision: str = PRECISION
    matrix_products: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class Way:
    """Something to measure.

    Attributes:
        kind: sternum, lightly or bare
        processes: number of training processes
        threads: of each
        options: words of `sternum pretrain`, for sternum
        bare: the step, for bare
    """

    kind: str
    processes: int = 1
    threads: int = 2
    options: tuple[str, ...] = ()
    bare: Bare = Bare()


def ways(cpus: int) -> dict[str, Way]:
    """Return what to measure by name."""
    return {
        f"sternum, one process of {cpus} threads": Way("sternum", 1, cpus),
        f"sternum, {cpus} processes of one thread": Way("sternum", cpus, 1),
        f"sternum, {cpus} processes, gradients averaged in bf16": Way(
            "sternum", cpus, 1, ("--engine.average_in=bf16",)
        ),
        f"lightly, one process of {cpus} threads and a worker": Way("lightly", 1, cpus),
        f"bare, {cpus} processes of one thread that share nothing": Way("bare", cpus, 1),
        "bare, one channel": Way("bare", 1, cpus),
        "bare, three channels": Way("bare", 1, cpus, bare=Bare(channels=3)),
        "bare, small maps as matrix products": Way("bare", 1, cpus, bare=Bare(matrix_products=True)),
        "bare, channels first": Way("bare", 1, cpus, bare=Bare(channels_last=False)),
        f"sternum, one process of {cpus} threads, compiled": Way("sternum", 1, cpus, ("--engine.compile=true",)),
        "bare, compiled": Way("bare", 1, cpus, bare=Bare(compiled=True)),
        f"bare, {OTHER}": Way("bare", 1, cpus, bare=Bare(precision=OTHER)),
    }


class Meter:
    """Called after each step; the first `warm` calls do not count."""

    def __init__(self, warm: int) -> None:
        self._warm, self._calls = warm, 0
        self._process = psutil.Process()
        self._began = self._ended = (0.0, 0.0)

    def __call__(self) -> None:
        """Note time and CPU time."""
        self._calls += 1
        if self._calls == self._warm:
            self._began = self._now()
        if self._calls >= self._warm:
            self._ended = self._now()

    def _now(self) -> tuple[float, float]:
        processes = [self._process, *self._process.children(recursive=True)]
        return time.perf_counter(), sum(sum(process.cpu_times()[:2]) for process in processes)

    def rate(self, batch: int) -> Rate:
        """Return what the steps since the first ones, of `batch` images each, have taken."""
        images = (self._calls - self._warm) * batch
        wall_s, cpu_s = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return Rate(images / wall_s, 1000 * cpu_s / images)


@dataclass(frozen=True)
class Length:
    """Steps before those that count, these, and the size of the views."""

    warm: int
    steps: int
    size_px: int


def measure(way: Way, ground: Path, length: Length) -> Rate:
    """Run a way once in its own processes."""
    with tempfile.TemporaryDirectory(prefix="sternum-learning-") as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.environ["OMP_NUM_THREADS"] = str(way.threads)  # the processes read it
        start_processes(  # type: ignore[no-untyped-call]
            _take_part, (way, ground, length, port, Path(name)), nprocs=way.processes, start_method="spawn"
        )
        rates = [Rate(*json.loads(path.read_text())) for path in Path(name).glob("rate-*.json")]
    batches = way.processes if way.kind == "bare" else 1  # in a step of all processes
    per_s, cpu_ms = (median(rate[number] for rate in rates) for number in range(2))
    return Rate(batches * per_s, cpu_ms * way.processes / batches)


def _take_part(rank: int, way: Way, ground: Path, length: Length, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(way.threads)
    meter = Meter(length.warm)
    steps = length.warm + length.steps
    if way.kind == "sternum":
        _pretrain(way, Ranks(rank, way.processes, rank, way.processes), ground, length, folder / "run", meter)
    elif way.kind == "lightly":
        train_peer(
            "lightly_simclr",
            all_pixels(ground),
            seed=0,
            epochs=steps,
            size_px=length.size_px,
            max_steps=steps,
            after_step=meter,
        )
    else:
        step = _bare_step(way.bare, length.size_px)
        for _ in range(steps):
            step()
            meter()
    (folder / f"rate-{rank}.json").write_text(json.dumps(meter.rate(BATCH)))


def _pretrain(way: Way, ranks: Ranks, ground: Path, length: Length, run: Path, meter: Meter) -> None:
    shards = ",".join(map(str, shard_folders(ground, SIDE_PX)))
    words = [
        *(str(run), *COMMON, *STERNUM["lightly_by_options"], f"--data.shards=[{shards}]"),
        *(f"--views.size_px={length.size_px}", f"--train.max_steps={length.warm + length.steps}", *way.options),
    ]
    config = parse(
        PretrainConfig,
        words,
        command="pretrain",
        description="",
        examples=[],
        subject="run_folder",
        configs=PRETRAIN_CONFIGS,
    )

    def timed(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        learned = learn(engine, batch, agreed, rate)
        meter()
        return learned

    pretrain(config, ranks, learning_step=timed)


def _bare_step(bare: Bare, size_px: int) -> Callable[[], None]:
    """Return a step on one batch."""
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig("resnet18", projection_width=512, head_norm=True), 0)
    if bare.channels == 3:
        encoder.backbone.network.module.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    if bare.matrix_products:
        use_matrix_products(encoder)
    layout = torch.channels_last if bare.channels_last else torch.contiguous_format
    encoder = encoder.to(memory_format=layout).train()
    if bare.compiled:
        encoder.backbone.compile(dynamic=False)
    optimizer = torch.optim.Adam(encoder.parameters(), 5e-4)
    views = torch.randn(2 * BATCH, bare.channels, size_px, size_px).contiguous(memory_format=layout)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bare.precision == "bf16"):
            projections = encoder(views)
        loss = nt_xent(projections.float(), 0.5)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """Return the loss of (2 B, d) projections, the second views after the first ones, in three lines of PyTorch."""
    normed = F.normalize(projections, dim=1)
    similarities = (normed @ normed.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarities, torch.arange(len(normed)).roll(len(normed) // 2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print and write the figures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground", type=Path, required=True, help="folder that learning's prepare made")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--size_px", type=int, default=96, help="width and height of a view")
    parser.add_argument("--warm_steps", type=int, default=5, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="parts of the names of the ways to measure; all by default")
    options = parser.parse_args(arguments)
    length = Length(options.warm_steps, options.steps, options.size_px)
    chosen = {
        name: way
        for name, way in ways(len(os.sched_getaffinity(0))).items()
        if not options.ways or any(part in name for part in options.ways)
    }
    rates: dict[str, list[Rate]] = {name: [] for name in chosen}
    for repeat in range(options.repeats):
        for name in list(chosen)[:: -1 if repeat % 2 else 1]:  # so that a drift affects all alike
            rates[name].append(measure(chosen[name], options.ground, length))
            print(f"{name}: {rates[name][-1].images_per_s:.1f} images/s", flush=True)
    print(text(rates))
    write_atomic(options.out, json.dumps(as_json(rates, options), indent=1) + "\n")
    return 0


def text(rates: dict[str, list[Rate]]) -> str:
    """Return medians and ranges as a table."""
    lines = []
    for name, found in rates.items():
        per_s = [rate.images_per_s for rate in found]
        cpu_ms = median(rate.cpu_ms_per_image for rate in found)
        lines.append([name, f"{median(per_s):.1f}", f"{min(per_s):.1f} to {max(per_s):.1f}", f"{cpu_ms:.1f}"])
    return table(["", "images/s", "range", "CPU ms an image"], lines)


def as_json(rates: dict[str, list[Rate]], options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the JSON file."""
    return {
        "units": {"images_per_s": "images/s, each with two views", "cpu_ms_per_image": "ms"},
        "all": {name: [rate._asdict() for rate in found] for name, found in rates.items()},
        "options": {name: value for name, value in vars(options).items() if name not in ("out", "ground")},
        "batch": BATCH,
        "precision": PRECISION,
        "machine": machine("torch", "torchvision", "lightly", "nvidia-dali-cuda130"),
    }


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
