"""The effective-training-time ratio of a run whose processes are killed at random."""

import argparse
import math
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from infra.errors import RunFailed
from infra.monitoring.metrics import read_metrics
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_order
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.model.encoder import ModelConfig
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.sample_log import read_sample_log
from ssl_core.views.spec import ViewSpec
from tests.support.faulty_training import small_config, steps_done
from tests.support.launchers import LaunchedCommand, launch, supervise_command, torchrun_command

_POLL_S: Final = 0.1


@dataclass(frozen=True)
class Ratio:
    """Figures of the run; `step_s` is the median step, `back_s` the median from a kill to the end of the next step."""

    effective_share: float
    wall_s: float
    step_s: float
    steps: int
    steps_redone: int
    kills: int
    back_s: float
    samples_lost_or_repeated: int


class Step(NamedTuple):
    """A step that was done, whether or not a restart discarded it."""

    number: int
    ended_s: float
    took_s: float


def measure_ratio(shards: Path, folder: Path, options: argparse.Namespace) -> Ratio:
    """Train while processes are killed, then stop the run as a scheduler does."""
    config = small_config(folder / "run", shards, epochs=10**6, checkpoint_every_epochs=10**6, precision="bf16")
    config = replace(
        config,
        data=replace(config.data, global_batch=options.global_batch),
        views=ViewSpec(size_px=options.size_px),
        model=ModelConfig("resnet18"),
        train=replace(config.train, checkpoint_every_steps=options.checkpoint_every_steps),
        checkpoints=CheckpointConfig(keep_last=2),
    )
    command = supervise_command(config, torchrun_command(config, "--max-restarts=3"), "--patience=1000")
    began_s = time.time()
    with launch(command, folder / "log") as run, steps_seen(config) as seen:
        killed_s = fire(run, began_s, options)
        os.kill(run.process.pid, signal.SIGTERM)
        run.end()
    wall_s = time.time() - began_s
    counting = steps_done(config.run_folder)
    step_s = statistics.median(step.took_s for step in seen) if seen else 0.0
    back_s = [min((step.ended_s for step in seen if step.ended_s > kill_s), default=math.inf) for kill_s in killed_s]
    back_s = [end_s - kill_s for end_s, kill_s in zip(back_s, killed_s, strict=True) if end_s < math.inf]
    return Ratio(
        effective_share=counting * step_s / wall_s,
        wall_s=wall_s,
        step_s=step_s,
        steps=counting,
        steps_redone=len(seen) - counting,
        kills=len(killed_s),
        back_s=statistics.median(back_s) if back_s else 0.0,
        samples_lost_or_repeated=misplaced(config),
    )


def fire(run: LaunchedCommand, began_s: float, options: argparse.Namespace) -> list[float]:
    """Kill a process at a random moment of every period, and return the times of the kills."""
    draw = random.Random(options.seed)
    killed_s: list[float] = []
    periods = range(int(options.ratio_s / options.kill_every_s))
    moments_s = [began_s + (period + draw.random()) * options.kill_every_s for period in periods]
    while time.time() < began_s + options.ratio_s:
        if run.process.poll() is not None:
            raise RunFailed(f"the run ended by itself: {run.output()[-2000:]}")
        if len(killed_s) < len(moments_s) and time.time() >= moments_s[len(killed_s)]:
            targets = [process for process in run.all("launch.pretrain") if process.pid != run.process.pid]
            if targets:  # there are none for a moment between two starts
                draw.choice(targets).kill()
                killed_s.append(time.time())
        time.sleep(_POLL_S)
    return killed_s


@contextmanager
def steps_seen(config: PretrainConfig) -> Iterator[set[Step]]:
    """Collect the steps done while the block runs, including those that a restart drops from the metrics."""
    seen: set[Step] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(_POLL_S):
            seen.update(steps_of(config))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        seen.update(steps_of(config))


def steps_of(config: PretrainConfig) -> set[Step]:
    """Return the steps in the run's metrics, which have a line for each."""
    images = config.data.global_batch
    lines = read_metrics(config.run_folder)
    return {Step(int(line["step"]), line["time_s"], images / line["speed/images_per_s"]) for line in lines}


def misplaced(config: PretrainConfig) -> int:
    """Return how many samples that the run consumed differ from those of the order."""
    shards = ShardSet(config.data.shards)
    order = sample_order(shards, config.data, config.seed)
    wrong = 0
    for number, step in enumerate(read_sample_log(config.run_folder)):
        positions = order.batch(number)
        wanted = [
            shards.index(int(shard))["sample"][row] for shard, row in zip(positions.shard, positions.row, strict=True)
        ]
        wrong += int((step.samples != np.array(wanted)).sum())
    return wrong
