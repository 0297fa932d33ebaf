"""What the metrics of a pretraining cost: their CPU time as a share of that of the steps between two lines.

A real run on simulated radiographs in one process, of which the first window warms up. CPU time of this thread counts,
so other programs on the machine do not. The cost is that of everything that only a step before a line has: copying
features and projections, measuring health, norm of the weights, means, and writing the line and its events.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from infra.ranks.processes import Ranks
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.simulation.datasets import write_cell
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.model.encoder import ModelConfig
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.health import HealthWatch
from ssl_core.pretraining.learning_step import Learned, learn
from ssl_core.pretraining.monitor import Line, Monitor
from ssl_core.pretraining.outputs import RunOutputs
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch
from ssl_core.views.spec import ViewSpec


class Costs:
    """CPU seconds of steps and of metrics, by window between two lines."""

    def __init__(self) -> None:
        self.windows: list[tuple[float, float]] = []  # of each finished window: seconds of steps, of metrics
        self._step_s = self._metrics_s = 0.0

    def of_metrics(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time counts as that of the metrics."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began_s = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self._metrics_s += time.thread_time() - began_s

        return timed

    def step(self, engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        """Make a step."""
        head = engine.encoder.head
        if "register_forward_hook" not in vars(head):
            register = head.register_forward_hook
            vars(head)["register_forward_hook"] = lambda hook: register(self.of_metrics(hook))
        began_s, metrics_s = time.thread_time(), self._metrics_s
        learned = learn(engine, batch, agreed, rate)
        self._step_s += time.thread_time() - began_s - (self._metrics_s - metrics_s)
        return learned

    def finish_window(self) -> None:
        """Begin the next window."""
        self.windows.append((self._step_s, self._metrics_s))
        self._step_s = self._metrics_s = 0.0


def measure(options: argparse.Namespace, folder: Path) -> list[tuple[float, float]]:
    """Pretrain; return the CPU seconds of each window but the first."""
    write_cell(folder / "cell", {"train": 2 * options.global_batch}, seed=0, size_px=options.size_px)
    pack(PackConfig("cell", folder / "cell", folder / "shards", options.size_px))
    costs = Costs()
    for owner, name in ((HealthWatch, "measure"), (Monitor, "line"), (RunOutputs, "write_metrics")):
        setattr(owner, name, costs.of_metrics(getattr(owner, name)))
    write = RunOutputs.write_metrics

    def write_and_finish(outputs: RunOutputs, step: int, line: Line) -> None:
        write(outputs, step, line)
        costs.finish_window()

    RunOutputs.write_metrics = write_and_finish  # type: ignore[method-assign, assignment]
    config = PretrainConfig(
        run_folder=folder / "run",
        data=DataConfig([str(folder / "shards")], global_batch=options.global_batch, lanes=1),
        views=ViewSpec(size_px=options.size_px),
        model=ModelConfig(options.backbone),
        train=TrainConfig(
            epochs=10**6,
            checkpoint_every_epochs=10**6,
            log_every_steps=options.log_every_steps,
            max_steps=options.windows * options.log_every_steps,
            device="cpu",
        ),
    )
    pretrain(config, Ranks(), learning_step=costs.step)
    return costs.windows[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--global_batch", type=int, default=64)
    parser.add_argument("--log_every_steps", type=int, default=10, help="steps of a window")
    parser.add_argument("--windows", type=int, default=4, help="of which the first warms up")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sternum-metrics-") as name:
        windows = measure(options, Path(name))
    steps_s, metrics_s = (statistics.median(seconds) for seconds in zip(*windows, strict=True))
    print(f"metrics {metrics_s:.4f} CPU s, steps {steps_s:.2f} CPU s: {100 * metrics_s / steps_s:.2f} %")
    figures = {
        "units": {"steps_s": "CPU s a window", "metrics_s": "CPU s a window", "share": "metrics_s / steps_s"},
        "median": {"steps_s": steps_s, "metrics_s": metrics_s, "share": metrics_s / steps_s},
        "windows": windows,
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "machine": machine("torch", "torchvision"),
    }
    write_atomic(options.out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
