"""Pretraining in real processes that can be hurt."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from forks import forks
from safetensors.torch import load_file

from infra.errors import RunFailed, UserError
from infra.metrics import read_metrics
from infra.processes import Ranks
from sharding.stream import DataConfig
from ssl_core import train
from ssl_core.checkpoint import find_checkpoints
from ssl_core.consumed import Consumed, read_consumed
from ssl_core.model import ModelConfig
from ssl_core.optim import OptimConfig
from ssl_core.train import PretrainConfig, TrainConfig, pretrain
from ssl_core.views.spec import ViewSpec


@dataclass(frozen=True)
class Fault:
    """What happens to one rank when it is about to learn from a step, `times` times over all starts of the run.

    kind: kill, stop (SIGSTOP), term (SIGTERM), raise, nan (in its images).
    """

    kind: str
    rank: int
    step: int
    times: int = 1


def small(run: Path, shards: Path, **changes: Any) -> PretrainConfig:
    """A run of 12 steps with a checkpoint every 3, small enough to be started many times."""
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
        model=ModelConfig("resnet18", projection_width=32, projection_size=16),
        # Adam's first steps turn the rounding of a gradient near zero into a whole step: with the paper's rate, runs
        # at two world sizes, which sum in different orders, part visibly within ten steps.
        optim=OptimConfig(learning_rate=1e-5),
        train=replace(train_config, **changes),
        executor="torchvision",
    )


def start(config: PretrainConfig, world: int, faults: Sequence[Fault] = ()) -> list[Any]:
    """Start the ranks of a run and return their processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        forks().Process(target=_take_part, args=(config, Ranks(rank, world, rank, world), port, tuple(faults)))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def end(processes: Sequence[Any], timeout_s: float = 120.0) -> list[int]:
    """Wait as a launcher does: once a rank has failed, the others get a moment and are killed; returns exit codes."""
    until_s = time.monotonic() + timeout_s
    while any(process.is_alive() for process in processes) and time.monotonic() < until_s:
        if any(process.exitcode for process in processes):
            until_s = min(until_s, time.monotonic() + 15.0)
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def train_through(config: PretrainConfig, world: int, faults: Sequence[Fault] = (), starts: int = 10) -> int:
    """Start the run again until it is finished; returns the number of starts."""
    for number in range(1, starts + 1):
        if end(start(config, world, faults)) == [0] * world and steps_done(config.run_folder) == total_steps(config):
            return number
    raise AssertionError(f"{config.run_folder} was not finished after {starts} starts")


def steps_done(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    checkpoints = find_checkpoints(run)
    return checkpoints[-1].step if checkpoints else 0


def total_steps(config: PretrainConfig) -> int:
    """Return the step at which the run is finished."""
    samples = train.ShardSet(config.data.shards).samples
    return -(-config.train.epochs * samples // config.data.global_batch)


@dataclass(frozen=True)
class Outcome:
    """What a run left: final weights, losses by step, and every sample that was consumed."""

    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    consumed: list[Consumed]


def outcome(run: Path) -> Outcome:
    """Read what a finished run left."""
    weights = load_file(find_checkpoints(run)[-1].path / "model.safetensors")
    losses = {int(line["step"]): line["loss"] for line in read_metrics(run)}
    return Outcome(weights, losses, read_consumed(run))


def assert_same_samples(found: Outcome, expected: Outcome) -> None:
    """Assert that step by step the same samples of the same epochs were consumed, none lost and none repeated."""
    assert [step.step for step in found.consumed] == [step.step for step in expected.consumed]
    for one, other in zip(found.consumed, expected.consumed, strict=True):
        assert one.epochs.tolist() == other.epochs.tolist()
        assert one.samples.tolist() == other.samples.tolist()


def assert_same_bits(found: Outcome, expected: Outcome) -> None:
    """Assert that a run ended in the very weights, by the very losses and samples, of another."""
    assert_same_samples(found, expected)
    assert found.losses == expected.losses
    assert found.weights.keys() == expected.weights.keys()
    different = [name for name, value in expected.weights.items() if not torch.equal(found.weights[name], value)]
    assert not different, different


def _take_part(config: PretrainConfig, ranks: Ranks, port: int, faults: Sequence[Fault]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(ranks.rank)}
    torch.set_num_threads(1)
    log = (config.run_folder.parent / f"{config.run_folder.name}-rank-{ranks.rank}.log").open("a")
    sys.stdout = sys.stderr = log
    train._learn = _hurt(train._learn, config.run_folder, [fault for fault in faults if fault.rank == ranks.rank])
    try:
        pretrain(config, ranks)
    except (UserError, RunFailed) as error:
        log.write(f"error: {error}\n")
        log.close()
        os._exit(error.exit_code)  # at once, as a launcher would end it: other ranks may be gone
    log.close()


def _hurt(learn: Callable[..., Any], run: Path, faults: Sequence[Fault]) -> Callable[..., Any]:
    def hurt(engine: Any, batch: Any, rate: float) -> Any:
        for number, fault in enumerate(faults):
            counter = run.with_name(f"{run.name}-fault-{fault.rank}-{number}")
            if batch.step == fault.step and _once_more(counter, fault.times):
                _strike(fault.kind, batch)
        return learn(engine, batch, rate)

    return hurt


def _once_more(counter: Path, times: int) -> bool:
    done = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(done + 1))
    return done < times


def _strike(kind: str, batch: Any) -> None:
    if kind == "nan":
        batch.views[0][0] = float("nan")
    elif kind == "raise":
        raise RuntimeError("a rank that raises")
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[kind])
