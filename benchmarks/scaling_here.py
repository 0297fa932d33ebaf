"""The model of `benchmarks.scaling` against real steps of 1, 2, 4 and 8 processes of this machine, over gloo.

Bytes of every collective must be equal. For the times, the model gets the machine's figures: the rate of one process
alone, and latency and rate of an all-reduce of two. All of them share the cores, so from `cores` processes on each has
its part of both.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from benchmarks.common import machine, table
from benchmarks.scaling import Machine, Traffic, step_of, traffic_of
from infra.storage.files import write_atomic
from ssl_core.engines import EngineConfig, EngineSetup, build_engine
from ssl_core.loss.agreement import Identities, agree
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import Encoder, ModelConfig, build_encoder
from ssl_core.model.optimizer import OptimConfig

_PROJECTION: Final = 128
_LARGE: Final = 1 << 21  # float32 numbers: 8 MB
_REPEATS: Final = 15
_CPU: Final = torch.device("cpu")
Sent = dict[str, list[int]]


@dataclass(frozen=True)
class Measured:
    """What a rank measures.

    Attributes:
        sent: bytes that it hands over in a step, by collective and type; gradients travel in bf16
        steps_s: seconds of each step
        small_s: seconds of an all-reduce of one number
        large_s: seconds of an all-reduce of 8 MB
    """

    sent: Sent
    steps_s: list[float]
    small_s: float = 0.0
    large_s: float = 0.0


def note_sent(sent: Sent) -> None:
    """Note the bytes that this process hands over to each later collective, by its name and the type of its values."""

    def note(name: str, position: int) -> None:
        collective = getattr(dist, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            values: Tensor = arguments[position]
            sent.setdefault(f"{name} {values.dtype}", []).append(values.nbytes)
            return collective(*arguments, **options)

        setattr(dist, name, noted)

    note("all_reduce", 0)
    note("all_gather_into_tensor", 1)


def differences(sent: Sent, expected: Traffic) -> list[str]:
    """Return the collectives whose bytes the model does not know."""
    pairs = {
        "batch norm": (sorted(sent.get("all_reduce torch.float64", [])), sorted(expected.statistics)),
        "agreement": (sent.get("all_gather_into_tensor torch.int64", []), expected.agreement),
        "projections": (
            sent.get("all_gather_into_tensor torch.float32", []) + sent.get("all_gather_into_tensor torch.float64", []),
            expected.projections,
        ),
        "gradients": (2 * sum(sent.get("all_reduce torch.bfloat16", [])), expected.gradients),
    }
    return [f"{name}: {ours} instead of {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def _encoder() -> Encoder:
    return build_encoder(ModelConfig("resnet18", projection_size=_PROJECTION), seed=0)


def _measure(rank: int, world: int, share: int, size_px: int, steps: int) -> Measured:
    """Make some steps, and some collectives alone."""
    sent: Sent = defaultdict(list)
    note_sent(sent)
    setup = EngineSetup(EngineConfig(average_in="bf16"), OptimConfig(), LossConfig(), "fp32", _CPU)
    engine = build_engine(setup, _encoder())
    generator = torch.Generator().manual_seed(rank)
    views = [torch.randn(share, 1, size_px, size_px, generator=generator) for _ in range(2)]
    sample = torch.arange(share) + share * rank
    steps_s, first = [], {}
    for number in range(steps + 2):
        sent.clear()
        began_s = time.perf_counter()
        engine.backward(views, agree(share, LossConfig(), Identities(sample, sample, sample)))
        engine.update(1e-4)
        steps_s.append(time.perf_counter() - began_s)
        if number == 0:
            first = dict(sent)
    if world == 1:
        return Measured(first, steps_s[2:])
    small, large = torch.zeros(1), torch.zeros(_LARGE)
    return Measured(
        first, steps_s[2:], _time_s(lambda: dist.all_reduce(small)), _time_s(lambda: dist.all_reduce(large))
    )


def _time_s(action: Callable[[], object]) -> float:
    times_s = []
    for _ in range(_REPEATS):
        dist.barrier()
        began_s = time.perf_counter()
        action()
        times_s.append(time.perf_counter() - began_s)
    return median(times_s)


def _rank(rank: int, world: int, store: str, share: int, size_px: int, steps: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.save(asdict(_measure(rank, world, share, size_px, steps)), f"{store}-{rank}")
    if world > 1:
        dist.destroy_process_group()


def measure(world: int, share: int, size_px: int, steps: int) -> Measured:
    """Return what the first of `world` processes measures."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        start_processes(_rank, (world, store, share, size_px, steps), nprocs=world)  # type: ignore[no-untyped-call]
        return Measured(**torch.load(f"{store}-0"))


def machine_of(alone: Measured, two: Measured, share: int, world: int, cores: int) -> Machine:
    """Return the figures of this machine for the model, as `world` processes on its cores have them."""
    part = min(1.0, cores / world)
    rate = 2 * share / median(alone.steps_s)
    small_us, bytes_per_s = 1e6 * two.small_s, 4 * _LARGE / (two.large_s - two.small_s)
    return Machine(
        views_per_s=rate * part,
        gpus_in_node=world,
        link_gb_s=bytes_per_s * part / 1e9,
        link_us=small_us / 2 / part,  # the all-reduce of two has two messages
        launch_us=0,
        tcp_us=small_us / 2 / part,
        spread_percent=0,
        image_kb=0,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, compare, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--share", type=int, default=16, help="samples of a process in a step")
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--remark", default="", help="what else the machine did")
    options = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    of_world = {
        world: measure(world, options.share, options.size_px, options.steps)
        for world in sorted({1, 2, *options.worlds})
    }
    traffic = traffic_of(_encoder(), options.share, _PROJECTION)
    figures = []
    for world in options.worlds:
        found = of_world[world]
        wrong = differences(found.sent, traffic) if world > 1 else []
        assert not wrong, f"{world} processes: {wrong}"
        here = machine_of(of_world[1], of_world[2], options.share, world, cores)
        sent = traffic._replace(gradients=traffic.gradients // 2)  # in bf16
        estimate_ms = step_of(world, options.share, sent, here)["step"]
        measured_ms = 1000 * median(found.steps_s)
        figures.append(
            {
                "processes": world,
                "measured_ms": round(measured_ms, 1),
                "range_ms": [round(1000 * step_s, 1) for step_s in (min(found.steps_s), max(found.steps_s))],
                "model_ms": round(estimate_ms, 1),
                "measured_to_model": round(measured_ms / estimate_ms, 2),
            }
        )
    result = {
        "bytes": "equal for every collective",
        "figures": figures,
        "options": {name: getattr(options, name) for name in ("share", "size_px", "steps")},
        "cores": cores,
        "remark": options.remark,
        "machine": machine("torch"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print(table(list(figures[0]), [[str(value) for value in figure.values()] for figure in figures]))


if __name__ == "__main__":
    main()
