"""The cost of a training step, and the share of it that is neither forward, backward nor update.

Each case runs the real `pretrain` on simulated radiographs in its own processes, and gives

images/s       of the loop; GFLOP/s count 3 x forward pass x 2 views, without what micro-batches compute twice
limit          forward, backward and update alone, repeated on one batch in memory in the same processes
overhead       share of time that is neither these three nor waiting for data, as the run reports it
waiting        share of time that the loop waits for data, as the run reports it
outside        overhead and waiting together, measured from outside by the start and end of the three
save           share of a checkpoint's saving, from the call until it is durable, that the loop waits for

Three windows between two lines of metrics each: the first warms up, the second counts and holds one line, and in the
third a checkpoint is saved while training continues.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.multiprocessing.spawn import start_processes
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import machine, table
from infra.monitoring.metrics import read_metrics
from infra.ranks.processes import Ranks, sum_over_ranks
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.simulation.datasets import write_cell
from ssl_core.checkpoints.checkpoint import checkpoint_path
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.engines import Engine, EngineConfig
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.learning_step import Learned, learn
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch
from ssl_core.views.spec import ViewSpec

SHORTER_SIDE_PX: Final = 320
_VIEWS: Final = 2
_TRAINING_PASSES: Final = 3  # forward, and a backward that costs twice as much
_GFLOP: Final = 1e9
_PERCENT: Final = ("overhead_share", "wait_share", "outside_share", "save_wait_share")


@dataclass(frozen=True)
class Case:
    """A configuration to train. parts: micro-batches of a rank's share; local_batch: samples a rank and step."""

    backbone: str
    size_px: int
    engine: str
    parts: int
    local_batch: int

    @property
    def name(self) -> str:
        """The name in the table."""
        parts = f", {self.parts} micro-batches" if self.parts > 1 else ""
        return f"{self.backbone}, {self.size_px} px, {self.engine}{parts}"


@dataclass(frozen=True)
class Turn:
    """The measurement of a case: steps in a window, calls of the limit, processes, and the threads of each."""

    window_steps: int
    limit_calls: int
    ranks: int
    threads: int
    executor: str

    @property
    def save_step(self) -> int:
        """The step after which a checkpoint is saved: the first one of the third window."""
        return 2 * self.window_steps + 1


class Figures(NamedTuple):
    """Figures of a case; seconds are per step."""

    images_per_s: float
    limit_images_per_s: float
    gflop_per_s: float
    step_s: float
    limit_step_s: float
    overhead_share: float
    wait_share: float
    outside_share: float
    save_wait_s: float
    save_s: float
    save_wait_share: float


class Stopwatch:
    """A learning step (forward, backward and update) that takes the time, and measures the limit at the end."""

    def __init__(self, run: Path, turn: Turn) -> None:
        self._run, self._turn = run, turn
        self._began_s: dict[int, float] = {}
        self._ended_s: dict[int, float] = {}
        self.limit_step_s = 0.0

    def __call__(self, engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        """Learn from a batch as the loop does; after the last window, learn from it repeatedly to measure the limit."""
        window = self._turn.window_steps
        if batch.step in (window, 2 * window):
            _wait_for_gpu(engine)
        self._began_s[batch.step] = time.perf_counter()
        learned = learn(engine, batch, agreed, rate)
        self._ended_s[batch.step] = time.perf_counter()
        if batch.step == 3 * window:
            self._measure_limit(engine, batch, agreed, rate)
        return learned

    def _measure_limit(self, engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> None:
        while not checkpoint_path(self._run, self._turn.save_step).exists():
            time.sleep(0.05)  # a save in the background takes time from it
        for call in range(-1, self._turn.limit_calls):
            if call == 0:  # the first has warmed up
                _wait_for_gpu(engine)
                sum_over_ranks(0)
                began_s = time.perf_counter()
            learn(engine, batch, agreed, rate)
        _wait_for_gpu(engine)
        self.limit_step_s = (time.perf_counter() - began_s) / self._turn.limit_calls

    @property
    def step_s(self) -> float:
        """Seconds a step, in the window that counts."""
        window = self._turn.window_steps
        return (self._began_s[2 * window] - self._began_s[window]) / window

    @property
    def outside_share(self) -> float:
        """Share of the window in which nothing was learned."""
        window = self._turn.window_steps
        learned_s = sum(self._ended_s[step] - self._began_s[step] for step in range(window, 2 * window))
        return 1 - learned_s / (window * self.step_s)


def _wait_for_gpu(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


def configuration(case: Case, turn: Turn, shards: Path, run: Path) -> PretrainConfig:
    """Return the run of a case: three windows, and a step for the limit."""
    global_batch = case.local_batch * turn.ranks
    return PretrainConfig(
        run_folder=run,
        data=DataConfig([str(shards)], global_batch=global_batch, lanes=turn.ranks),
        views=ViewSpec(size_px=case.size_px),
        model=ModelConfig(case.backbone),
        engine=EngineConfig(kind=case.engine),  # type: ignore[arg-type]
        train=TrainConfig(
            epochs=10**6,
            micro_batches=case.parts,
            checkpoint_every_epochs=10**6,
            checkpoint_every_steps=turn.save_step,
            log_every_steps=turn.window_steps,
            max_steps=3 * turn.window_steps + 1,
        ),
        checkpoints=CheckpointConfig(keep_last=2),
        executor=turn.executor,  # type: ignore[arg-type]
    )


def take_part(rank: int, config: PretrainConfig, turn: Turn, port: int, answer: Path) -> None:
    """Run one rank of a case; the first rank writes the measurements to `answer`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(turn.threads)
    watch = Stopwatch(config.run_folder, turn)
    pretrain(config, Ranks(rank, turn.ranks, rank, turn.ranks), learning_step=watch)
    if rank == 0:
        answer.write_text(json.dumps([watch.step_s, watch.limit_step_s, watch.outside_share]))


def measure(case: Case, turn: Turn, shards: Path, folder: Path) -> Figures:
    """Run a case once."""
    folder.mkdir()
    config = configuration(case, turn, shards, folder / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (config, turn, port, folder / "answer.json")
    start_processes(take_part, arguments, nprocs=turn.ranks, start_method="spawn")  # type: ignore[no-untyped-call]
    step_s, limit_step_s, outside_share = json.loads((folder / "answer.json").read_text())
    lines = {line["step"]: line for line in read_metrics(config.run_folder)}
    window, last = lines[2 * turn.window_steps], lines[3 * turn.window_steps + 1]
    images = config.data.global_batch
    return Figures(
        images_per_s=images / step_s,
        limit_images_per_s=images / limit_step_s,
        gflop_per_s=images / step_s * _VIEWS * _TRAINING_PASSES * forward_gflop(case),
        step_s=step_s,
        limit_step_s=limit_step_s,
        overhead_share=window["speed/overhead_share"],
        wait_share=window["speed/data_wait_share"],
        outside_share=outside_share,
        save_wait_s=last["checkpoint/wait_s"],
        save_s=last["checkpoint/save_s"],
        save_wait_share=last["checkpoint/wait_s"] / last["checkpoint/save_s"],
    )


def forward_gflop(case: Case) -> float:
    """Return the GFLOP of the encoder for one view; a multiplication and an addition count as two."""
    with torch.device("meta"):
        encoder = build_encoder(ModelConfig(case.backbone), 0).to("meta")
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(_VIEWS, 1, case.size_px, case.size_px))  # batch norm needs two
    return float(counter.get_total_flops() / _VIEWS / _GFLOP)


def median(turns: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(*(statistics.median(values) for values in zip(*turns, strict=True)))


def text(results: dict[str, list[Figures]]) -> str:
    """Return the medians as a table."""
    header = ["", "images/s", "limit", "of limit", "GFLOP/s", *("overhead", "waiting", "outside", "save")]
    rows = []
    for name, turns in results.items():
        figures = median(turns)
        rows.append(
            [
                name,
                f"{figures.images_per_s:.2f}",
                f"{figures.limit_images_per_s:.2f}",
                f"{100 * figures.limit_step_s / figures.step_s:.1f} %",
                f"{figures.gflop_per_s:.0f}",
                *(f"{100 * getattr(figures, share):.2f} %" for share in _PERCENT),
            ]
        )
    return table(header, rows)


def as_json(cases: list[Case], results: dict[str, list[Figures]], turn: Turn, device: str) -> dict[str, Any]:
    """Return the content of the JSON file: units, medians, every turn, cases, machine."""
    return {
        "units": {
            **{name: "images/s" for name in Figures._fields if name.endswith("images_per_s")},
            **{name: "s" for name in Figures._fields if name.endswith("_s") and "per" not in name},
            **dict.fromkeys(_PERCENT, "share of the time"),
            "save_wait_share": "share of save_s",
            "gflop_per_s": "10^9 floating-point operations/s",
        },
        "median": {name: median(turns)._asdict() for name, turns in results.items()},
        "all": {name: [figures._asdict() for figures in turns] for name, turns in results.items()},
        "cases": {case.name: asdict(case) for case in cases},
        "turn": asdict(turn),
        "device": device,
        "machine": machine("torch", "torchvision", "deepspeed", "nvidia-dali-cuda130"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the images, measure all cases in turns, and print and write the figures."""
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--backbone", default="wide_resnet50_2", help="the paper's by default")
    parser.add_argument("--size_px", type=int, default=224)
    parser.add_argument("--local_batch", type=int, default=256 if gpus else 8, help="samples a process and step")
    parser.add_argument(
        "--small_local_batch",
        type=int,
        default=512 if gpus else 32,
        help="samples a process and step for resnet18; 0 leaves it out",
    )
    parser.add_argument("--small_size_px", type=int, default=96, help="size of a view for resnet18")
    parser.add_argument("--engines", nargs="+", choices=["ddp", "deepspeed"], default=["ddp", "deepspeed"])
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2], help="micro-batches of a process's share")
    parser.add_argument(
        "--executor", choices=["auto", "dali", "torchvision"], default="auto", help="library that makes the views"
    )
    parser.add_argument("--ranks", type=int, default=gpus or 2, help="processes")
    parser.add_argument("--window_steps", type=int, default=10 if gpus else 4, help="between two lines of metrics")
    parser.add_argument("--limit_calls", type=int, default=10 if gpus else 3)
    parser.add_argument("--images", type=int, default=256, help="simulated radiographs")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(arguments)

    threads = max(1, len(os.sched_getaffinity(0)) // options.ranks)
    turn = Turn(options.window_steps, options.limit_calls, options.ranks, threads, options.executor)
    sizes = [(options.backbone, options.size_px, options.local_batch)]
    if options.small_local_batch:
        sizes.append(("resnet18", options.small_size_px, options.small_local_batch))
    cases = [
        Case(backbone, size_px, engine, parts, local_batch)
        for backbone, size_px, local_batch in sizes
        for engine in options.engines
        for parts in options.parts
    ]
    results: dict[str, list[Figures]] = {case.name: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="sternum-step-") as name:
        folder = Path(name)
        write_cell(folder / "cell", {"train": options.images}, seed=0, size_px=400)
        pack(PackConfig("cell", folder / "cell", folder / "shards", SHORTER_SIDE_PX))
        for repeat in range(options.repeats):
            for number, case in enumerate(cases):
                case_folder = folder / f"{repeat}-{number}"
                results[case.name].append(measure(case, turn, folder / "shards", case_folder))
                print(f"{case.name}: {results[case.name][-1].images_per_s:.2f} images/s", flush=True)
    print(text(results))
    device = torch.cuda.get_device_name() if gpus else "cpu"
    write_atomic(options.out, json.dumps(as_json(cases, results, turn, device), indent=1) + "\n")


if __name__ == "__main__":
    main()
