"""The loss compared with those of other libraries: time, memory, and correct gradients in several processes.

speed      time of forward and backward over N rows of d numbers in one process, and the peak of memory beyond the rows;
           each figure comes from its own process, the losses take turns, and medians of the repeats are given
gradients  gradient of a linear map under each loss after DDP's averaging over several processes (gloo), compared with
           one process with the whole batch in float64: relative error, cosine, ratio of the lengths. open_clip's
           loss is CLIP's, not NT-Xent, so it is compared with itself in one process
cache      gradient caching: a step whose global batch is P micro-batches, compared with a step of one micro-batch and
           with one of the whole batch at once; and its gradient compared with autograd through all micro-batches

A loss that would need more than the free memory, judged by its last size, is left out with the amount it would need.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.apart import Memory, apart, free_bytes
from benchmarks.common import installed, machine, table
from benchmarks.loss_gradients import Deviation, measure_gradients
from benchmarks.loss_ways import ALONE
from infra.storage.files import write_atomic

SECTIONS: Final = ("speed", "gradients", "cache")
TEMPERATURE: Final = 0.5
_CALLS: Final = 5
_ENOUGH_S: Final = 1.0  # no further calls once they have taken this long
_FREE: Final = 0.9  # share of the free memory that a way may take
_GB: Final = 1e9


class Cost(NamedTuple):
    """Cost of one forward and backward pass."""

    seconds: float
    peak_bytes: int
    loss: float


def measure_speed(sizes: list[int], width: int, repeats: int, device: str) -> dict[str, dict[int, list[Cost] | str]]:
    """Return the costs of each loss at each size, or the reason why there are none."""
    results: dict[str, dict[int, list[Cost] | str]] = {}
    for name, way in ALONE.items():
        if way.needs and not installed(way.needs[0]):
            results[name] = dict.fromkeys(sizes, f"not installed ({way.needs[1]})")
        elif name != "sternum, triton" or device != "cpu":
            results[name] = {}
    for rows in sizes:
        for name, by_size in results.items():
            if rows not in by_size:
                need_bytes = predict_bytes(by_size, rows, ALONE[name].growth)
                fits = need_bytes <= _FREE * free_bytes(torch.device(device))
                by_size[rows] = [] if fits else f"needs {need_bytes / _GB:,.0f} GB"
        for repeat in range(repeats):
            for name in list(results)[
                :: -1 if repeat % 2 else 1
            ]:  # alternate the order, so that a drift affects all alike
                record(results[name], rows, name, width, device)
    return results


def predict_bytes(by_size: dict[int, list[Cost] | str], rows: int, growth: int) -> float:
    """Predict the memory for a size from the last size measured, else as three fp32 tensors of the largest shape."""
    for before, costs in reversed(by_size.items()):
        if not isinstance(costs, str):
            return float(max(turn.peak_bytes for turn in costs) * (rows / before) ** growth)
    return float(3 * 4 * rows**growth)


def record(result: dict[int, list[Cost] | str], rows: int, name: str, width: int, device: str) -> None:
    """Measure once more; a failed peer is listed in the table, a failure of ours ends the benchmark."""
    costs = result[rows]
    if isinstance(costs, str):
        return
    try:
        costs.append(apart(cost, name, rows, width, device))
    except RuntimeError as error:
        if ALONE[name].needs is None:
            raise
        result[rows] = f"failed: {error}"


def cost(name: str, rows: int, width: int, device: str) -> Cost:
    """Measure one loss in this process: median time of a few calls, peak of memory."""
    loss = ALONE[name].build(0, 1, TEMPERATURE)
    small, projections = (make_projections(n, width, device) for n in (64, rows))
    forward_backward(loss, small)  # the first call loads and compiles
    memory = Memory(projections.device)
    taken_s: list[float] = []
    while len(taken_s) < _CALLS and sum(taken_s) < _ENOUGH_S:
        began_s = time.perf_counter()
        value = forward_backward(loss, projections)
        taken_s.append(time.perf_counter() - began_s)
    return Cost(statistics.median(taken_s), memory.peak_bytes(), value)


def make_projections(rows: int, width: int, device: str) -> Tensor:
    """Return two similar views (2, rows / 2, width), as after some training."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(rows // 2, width, generator=generator)
    views = torch.stack([sample + 0.5 * torch.randn(rows // 2, width, generator=generator) for _ in range(2)])
    return views.to(device).requires_grad_()


def forward_backward(loss: Callable[[Tensor, Tensor], Tensor], projections: Tensor) -> float:
    """Return the loss after a backward pass that accumulates no gradient."""
    value = loss(*projections)
    torch.autograd.grad(value, [projections])
    return value.item()  # waits for the device


def speed_text(results: dict[str, dict[int, list[Cost] | str]], sizes: list[int]) -> str:
    """Return a table for each size."""
    lines = []
    for rows in sizes:
        block = {name: by_size[rows] for name, by_size in results.items()}
        equation = block["equation 4 by autograd"]
        body = []
        for name, costs in block.items():
            if isinstance(costs, str):
                body.append([name, costs])
                continue
            seconds, peak, loss = medians(costs)
            relative = ["", ""]
            if not isinstance(equation, str):
                its_seconds, its_peak, _ = medians(equation)
                relative = [f"{seconds / its_seconds:.2f}", f"{100 * peak / its_peak:.1f} %" if its_peak else ""]
            span = f"{min(c.seconds for c in costs):.3f} to {max(c.seconds for c in costs):.3f}"
            body.append([name, f"{seconds:.3f}", span, relative[0], f"{peak / 1e6:,.0f}", relative[1], f"{loss:.5f}"])
        header = ["", "s", "range", "of equation 4", "MB at the peak", "of equation 4", "loss"]
        lines.append(f"N = {rows:,} rows, forward and backward\n{table(header, body)}")
    return "\n".join(lines)


def medians(costs: list[Cost]) -> Cost:
    """Return the median of each figure."""
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def gradients_text(results: dict[str, dict[str, Deviation | str]]) -> str:
    """Return a table of the deviations."""
    rows = []
    for name, by_world in results.items():
        for world, deviation in by_world.items():
            if isinstance(deviation, str):
                rows.append([name, deviation])
            else:
                figures = [f"{deviation.relative_error:.1e}", f"{deviation.cosine:.6f}", f"{deviation.length:.4f}"]
                rows.append([name, world, *figures])
    header = ["", "processes", "relative error", "cosine", "length"]
    return f"gradient after DDP's averaging, compared with the true one\n{table(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print and write the figures."""
    on_gpu = torch.cuda.is_available()
    sizes = [4096, 16384, 32768, 65536] + ([262144, 1048576] if on_gpu else [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="N, two for each sample")
    parser.add_argument("--width", type=int, default=128, help="d")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument(
        "--backbone", default="resnet50" if on_gpu else "resnet18", help="backbone of the section cache"
    )
    parser.add_argument("--size_px", type=int, default=224 if on_gpu else 64)
    parser.add_argument("--global_batch", type=int, default=4096 if on_gpu else 512, help="samples")
    parser.add_argument("--micro_batches", type=int, default=16, help="P")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    if "speed" in options.sections:
        speed = measure_speed(sorted(options.rows), options.width, options.repeats, options.device)
        print(speed_text(speed, sorted(options.rows)), flush=True)
        result["speed"] = {
            name: {
                rows: costs if isinstance(costs, str) else [cost._asdict() for cost in costs]
                for rows, costs in by_size.items()
            }
            for name, by_size in speed.items()
        }
    if "gradients" in options.sections:
        gradients = measure_gradients(options.worlds)
        print(gradients_text(gradients), flush=True)
        result["gradients"] = {
            name: {
                world: deviation if isinstance(deviation, str) else deviation._asdict()
                for world, deviation in by_world.items()
            }
            for name, by_world in gradients.items()
        }
    if "cache" in options.sections:
        from benchmarks.loss_cache import CacheTask, measure_cache  # noqa: PLC0415 - `speed` does not need it

        task = CacheTask(options.backbone, options.size_px, options.global_batch, options.micro_batches, options.device)
        result["cache"], text = measure_cache(task, options.repeats)
        print(text, flush=True)
    result |= {
        "units": {"seconds": "s", "peak_bytes": "bytes", "relative_error": "1", "cosine": "1", "length": "1"},
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "machine": machine("torch", "lightly", "solo-learn", "pytorch-metric-learning", "open_clip_torch"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
