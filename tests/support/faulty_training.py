"""Pretraining in real processes, with faults injected at chosen steps, and the outcomes of such runs."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from infra.errors import RunFailed, UserError
from infra.monitoring.metrics import read_metrics
from infra.ranks.processes import Ranks
from infra.storage.files import write_atomic
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.model.encoder import ModelConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.learning_step import Learned, LearningStep, learn
from ssl_core.pretraining.sample_log import LoggedStep, read_sample_log
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch
from ssl_core.views.spec import ViewSpec
from tests.support.disk_faults import FILLER, fill, on_disk_events
from tests.support.fork_server import fork_context
from tests.support.tiny_resnet import TINY_RESNET


@dataclass(frozen=True)
class Fault:
    """A fault that strikes one rank just before it learns from a step.

    Attributes:
        kind: kill, stop (SIGSTOP), term (SIGTERM), usr1 (SIGUSR1), int (SIGINT), raise, nan (in the rank's images),
            fill (the disk mounted on the run folder, to its last byte), free (that disk), or save: kill the rank while
            it saves the checkpoint of this step, before disk event number `event` (see `on_disk_events`).
        rank: the rank.
        step: the step.
        times: how often it strikes, over all starts of the run.
        event: for save, the number of the disk event.
    """

    kind: str
    rank: int
    step: int
    times: int = 1
    event: int = 0


def small_config(run: Path, shards: Path, backbone: str = TINY_RESNET, **changes: Any) -> PretrainConfig:
    """Return the configuration of a run of 12 steps with a checkpoint every 3; `changes` go to `TrainConfig`.

    Processes of a launcher have no `tiny_resnet`; they need another backbone.
    """
    train_config = TrainConfig(
        epochs=2,
        precision="fp32",
        checkpoint_every_steps=3,
        log_every_steps=1,
        log_samples=True,
        timeout_s=30.0,
    )
    return PretrainConfig(
        run_folder=run,
        data=DataConfig([str(shards)], global_batch=16, lanes=8),
        views=ViewSpec(size_px=32),
        model=ModelConfig(backbone, projection_width=32, projection_size=16),
        # Adam's first steps turn the rounding of a gradient near zero into a whole step. Runs at two world sizes sum
        # in different orders, so with the paper's rate they would differ visibly within ten steps.
        optim=OptimConfig(learning_rate=1e-5),
        train=replace(train_config, **changes),
        executor="torchvision",
    )


def start_ranks(
    config: PretrainConfig, world: int, faults: Sequence[Fault] = (), *, log_views: bool = False
) -> list[Any]:
    """Start one process for each rank of a run and return the processes.

    Args:
        config: the run
        world: number of ranks
        faults: what strikes them
        log_views: whether they note the views that they learn from, for `read_view_digests`
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        fork_context().Process(
            target=_take_part, args=(config, Ranks(rank, world, rank, world), port, tuple(faults), log_views)
        )
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def wait_for_ranks(processes: Sequence[Any], timeout_s: float = 120.0) -> list[int]:
    """Wait as a launcher does, and return the exit codes: after one rank fails, the others have 15 s to end."""
    until_s = time.monotonic() + timeout_s
    while any(process.is_alive() for process in processes) and time.monotonic() < until_s:
        if any(process.exitcode for process in processes):
            until_s = min(until_s, time.monotonic() + 15.0)
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def train_through(
    config: PretrainConfig, world: int, faults: Sequence[Fault] = (), starts: int = 10, *, log_views: bool = False
) -> int:
    """Start the run again until it is finished, and return the number of starts."""
    for number in range(1, starts + 1):
        exit_codes = wait_for_ranks(start_ranks(config, world, faults, log_views=log_views))
        if exit_codes == [0] * world and steps_done(config.run_folder) == total_steps(config):
            return number
    raise AssertionError(f"{config.run_folder} was not finished after {starts} starts")


def steps_done(run: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    checkpoints = find_checkpoints(run)
    return checkpoints[-1].step if checkpoints else 0


def total_steps(config: PretrainConfig) -> int:
    """Return the number of steps of the whole run."""
    samples = ShardSet(config.data.shards).samples
    return -(-config.train.epochs * samples // config.data.global_batch)


@dataclass(frozen=True)
class Outcome:
    """The result of a run: final weights, losses by step, and every sample that was consumed."""

    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    consumed: list[LoggedStep]


def read_outcome(run: Path) -> Outcome:
    """Read the outcome of a finished run."""
    weights = load_file(find_checkpoints(run)[-1].path / "model.safetensors")
    losses = {int(line["step"]): line["loss"] for line in read_metrics(run)}
    return Outcome(weights, losses, read_sample_log(run))


def assert_same_samples(actual: Outcome, expected: Outcome) -> None:
    """Assert that both runs consumed the same samples of the same epochs in each step, and showed the same siblings."""
    assert [step.step for step in actual.consumed] == [step.step for step in expected.consumed]
    for step, expected_step in zip(actual.consumed, expected.consumed, strict=True):
        assert step.epochs.tolist() == expected_step.epochs.tolist()
        assert step.samples.tolist() == expected_step.samples.tolist()
        assert step.second_samples.tolist() == expected_step.second_samples.tolist()


def assert_same_run(actual: Outcome, expected: Outcome) -> None:
    """Assert that both runs consumed the same samples and had, up to rounding, the same losses.

    For runs at different world sizes.
    """
    assert_same_samples(actual, expected)
    steps = sorted(expected.losses)
    np.testing.assert_allclose([actual.losses[s] for s in steps], [expected.losses[s] for s in steps], rtol=2e-3)


def assert_same_bits(actual: Outcome, expected: Outcome) -> None:
    """Assert that both runs have exactly the same samples, losses and final weights."""
    assert_same_samples(actual, expected)
    assert actual.losses.keys() == expected.losses.keys()
    np.testing.assert_array_equal(list(actual.losses.values()), list(expected.losses.values()))  # NaN equals NaN
    assert actual.weights.keys() == expected.weights.keys()
    different = [name for name, value in expected.weights.items() if not torch.equal(actual.weights[name], value)]
    assert not different, different


ViewDigests = dict[tuple[int, int, int], str]  # SHA-256 of both views, by (step, epoch, sample)


def read_view_digests(run: Path) -> ViewDigests:
    """Return the views that all ranks of all starts learned from; of a step that was made again, the later ones."""
    lines = [line for log in run.parent.glob(f"{run.name}-views-*.jsonl") for line in log.read_text().splitlines()]
    entries = sorted((json.loads(line) for line in lines), key=lambda entry: entry["time_s"])
    return {(entry["step"], entry["epoch"], entry["sample"]): entry["digest"] for entry in entries}


def _log_views(run: Path, rank: int, batch: Batch) -> None:
    with run.with_name(f"{run.name}-views-{rank}.jsonl").open("a") as log:
        for position, (epoch, sample) in enumerate(
            zip(batch.epochs.tolist(), batch.rows["sample"].tolist(), strict=True)
        ):
            pixels = b"".join(view[position].numpy().tobytes() for view in batch.views)
            entry = {"step": batch.step, "epoch": epoch, "sample": sample, "digest": sha256(pixels).hexdigest()}
            log.write(json.dumps(entry | {"time_s": time.time()}) + "\n")


def _take_part(config: PretrainConfig, ranks: Ranks, port: int, faults: Sequence[Fault], log_views: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(ranks.rank)}
    torch.set_num_threads(1)
    log = (config.run_folder.parent / f"{config.run_folder.name}-rank-{ranks.rank}.log").open("a")
    sys.stdout = sys.stderr = log
    mine = {counter(config.run_folder, fault, number): fault for number, fault in enumerate(faults)}
    mine = {path: fault for path, fault in mine.items() if fault.rank == ranks.rank}
    for path, fault in mine.items():
        if fault.kind == "save":
            on_disk_events(config.run_folder / "checkpoints", _KillInSave(fault, path))
    try:
        pretrain(config, ranks, learning_step=_hurt(config.run_folder, mine, ranks.rank if log_views else None))
    except (UserError, RunFailed) as error:
        log.write(f"error: {error}\n")
        log.close()
        os._exit(error.exit_code)  # at once, as under a launcher: an orderly exit would wait for ranks that are gone
    except KeyboardInterrupt:
        log.close()
        os._exit(130)
    log.close()


def counter(run: Path, fault: Fault, number: int) -> Path:
    """Return the file that counts how often fault number `number` of a start could have struck."""
    return run.with_name(f"{run.name}-fault-{fault.rank}-{number}")


def _hurt(run: Path, faults: dict[Path, Fault], logging_rank: int | None) -> LearningStep:
    def hurt(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        if logging_rank is not None:
            _log_views(run, logging_rank, batch)
        for path, fault in faults.items():
            if fault.kind != "save" and batch.step == fault.step and _once_more(path, fault.times):
                _strike(fault.kind, batch, run)
        return learn(engine, batch, agreed, rate)

    return hurt


class _KillInSave:
    """Hook that records the disk events of the save of one checkpoint, and kills its process at one of them.

    The save lasts from the first event for the checkpoint of this step to the first for that of a later step.
    """

    def __init__(self, fault: Fault, counter: Path) -> None:
        self._fault, self._counter = fault, counter
        self._events = 0
        self._saving = False

    def __call__(self, event: str, path: str) -> None:
        step = re.search(r"/\.?step-(\d+)", path)
        if step:
            self._saving = int(step[1]) == self._fault.step or (self._saving and int(step[1]) < self._fault.step)
        if not self._saving:
            return
        with self._counter.with_suffix(".events").open("a") as file:
            file.write(f"{event} {path}\n")
        if self._events == self._fault.event and _once_more(self._counter, self._fault.times):
            os.kill(os.getpid(), signal.SIGKILL)
        self._events += 1


def save_event_numbers(config: PretrainConfig, world: int, step: int) -> list[int]:
    """Train to the end and return the numbers of the disk events in the save of this step at which to kill.

    A file gets one write for each tensor; of these, only the first and the last count.
    """
    fault = Fault("save", 0, step, times=0)
    assert train_through(config, world, [fault]) == 1
    events = counter(config.run_folder, fault, 0).with_suffix(".events").read_text().splitlines()
    first = {event: number for number, event in reversed(list(enumerate(events)))}
    last = {event: number for number, event in enumerate(events)}
    return [
        number
        for number, event in enumerate(events)
        if not event.startswith("write ") or number in (first[event], last[event])
    ]


def _once_more(counter: Path, times: int) -> bool:
    done = int(counter.read_text()) if counter.exists() else 0
    write_atomic(counter, str(done + 1))  # atomic: another thread may kill this process meanwhile
    return done < times


def _strike(kind: str, batch: Batch, disk: Path) -> None:
    if kind == "nan":
        batch.views[0][0] = float("nan")
    elif kind == "fill":
        fill(disk, left_bytes=0)
    elif kind == "free":
        (disk / FILLER).unlink()
    elif kind == "raise":
        raise RuntimeError("a rank that raises")
    else:
        os.kill(os.getpid(), signal.Signals[f"SIG{kind.upper()}"])
