"""Gradient caching compared with the steps that it replaces: peak memory, time per sample, and the gradient."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.apart import Memory, apart, free_bytes
from benchmarks.common import table
from ssl_core.engines import Engine, EngineConfig, EngineSetup, build_engine
from ssl_core.engines.train_config import Precision
from ssl_core.loss.ntxent import LossConfig, nt_xent
from ssl_core.model.encoder import Encoder, ModelConfig, build_encoder
from ssl_core.model.optimizer import OptimConfig

_CALLS: Final = 3
_FREE: Final = 0.9  # share of the free memory that a step may take


@dataclass(frozen=True)
class CacheTask:
    """A step: network, size of the views, global batch in samples, and number of micro-batches."""

    backbone: str
    size_px: int
    global_batch: int
    micro_batches: int
    device: str


def measure_cache(task: CacheTask, repeats: int) -> tuple[dict[str, Any], str]:
    """Return the figures and their table."""
    micro_batch = task.global_batch // task.micro_batches
    ways = {
        f"one micro-batch of {micro_batch} alone": replace(task, global_batch=micro_batch, micro_batches=1),
        f"{task.global_batch} samples, cached": task,
        f"{task.global_batch} samples at once": replace(task, micro_batches=1),
    }
    results: dict[str, list[dict[str, float]] | str] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in list(ways.items())[:: -1 if repeat % 2 else 1]:
            figures = results[name]
            if isinstance(figures, str):
                continue
            need_bytes = _need_bytes(results, way, task)
            if need_bytes > _FREE * free_bytes(torch.device(task.device)):
                results[name] = f"needs {need_bytes / 1e9:,.0f} GB"
            else:
                figures.append(apart(step_cost, way))
    errors = {str(dtype)[6:]: apart(gradient_error, task, dtype) for dtype in (torch.float32, torch.float64)}
    rows = []
    for name, figures in results.items():
        if isinstance(figures, str):
            rows.append([name, figures])
            continue
        peaks, times = ([turn[field] for turn in figures] for field in ("peak_bytes", "seconds_per_sample"))
        span = f"{1e3 * min(times):.2f} to {1e3 * max(times):.2f}"
        rows.append([name, f"{statistics.median(peaks) / 1e6:,.0f}", f"{1e3 * statistics.median(times):.2f}", span])
    title = f"gradient caching: {task.backbone}, two views of {task.size_px} px, {task.micro_batches} micro-batches"
    text = "\n".join(
        [
            title,
            table(["", "MB at the peak", "ms per sample", "range"], rows),
            "  relative error of the gradient, compared with autograd through all micro-batches at once: "
            + ", ".join(f"{error:.1e} in {name}" for name, error in errors.items()),
        ]
    )
    return {"task": asdict(task), "steps": results, "relative_error": errors}, text


def _need_bytes(results: dict[str, Any], way: CacheTask, task: CacheTask) -> float:
    """Predict the memory of the whole batch from that of a micro-batch; the other steps are assumed to fit."""
    if way.micro_batches > 1 or way.global_batch < task.global_batch:
        return 0.0
    return task.micro_batches * max(turn["peak_bytes"] for turn in next(iter(results.values())))


def step_cost(task: CacheTask) -> dict[str, float]:
    """Measure forward and backward of one step in this process."""
    engine = _engine(task, _encoder(task), "bf16" if task.device != "cpu" else "fp32")
    engine.backward(_views(replace(task, global_batch=2)))  # the first call loads libraries and chooses algorithms
    views = _views(task)
    memory, times_s = Memory(engine.device), []
    for _ in range(_CALLS):
        began_s = time.perf_counter()
        engine.backward(views).loss.item()
        if task.device != "cpu":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - began_s)
    return {"peak_bytes": memory.peak_bytes(), "seconds_per_sample": statistics.median(times_s) / task.global_batch}


def gradient_error(task: CacheTask, dtype: torch.dtype) -> float:
    """Return the relative error of the cached gradient over all parameters, for a small batch in as many parts.

    The reference is autograd through all parts at once, each normalized by its own statistics as in caching.
    """
    small = replace(task, global_batch=min(task.global_batch, 4 * task.micro_batches))
    views = [view.to(dtype) for view in _views(small)]
    engine = _engine(small, _encoder(small).to(dtype), "fp32")
    engine.backward(views)
    cached = engine.gradients()

    encoder = _encoder(small).to(task.device, dtype).to(memory_format=torch.channels_last).train()
    parts = range(small.micro_batches)
    images = [torch.cat([view[part :: len(parts)] for view in views]) for part in parts]  # (2m, 1, S, S) each
    projections = [encoder(part).chunk(2) for part in images]
    first, second = (torch.cat([pair[view] for pair in projections]) for view in range(2))
    nt_xent(first, second, LossConfig()).loss.backward()  # type: ignore[no-untyped-call]
    true = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert true.keys() == cached.keys()
    return _length(cached[name] - true[name] for name in true) / _length(true.values())


def _length(tensors: Iterable[Tensor]) -> float:
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm().item()


def _engine(task: CacheTask, encoder: Encoder, precision: Precision) -> Engine:
    device = torch.device(task.device)
    setup = EngineSetup(
        EngineConfig(), OptimConfig(), LossConfig(), precision, device, micro_batches=task.micro_batches
    )
    return build_engine(setup, encoder)


def _encoder(task: CacheTask) -> Encoder:
    return build_encoder(ModelConfig(backbone=task.backbone), seed=0)


def _views(task: CacheTask) -> list[Tensor]:
    """Return two views (n, 1, S, S) of noise."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(task.global_batch, 1, task.size_px, task.size_px, generator=generator)
    return [(sample + 0.5 * torch.randn(sample.shape, generator=generator)).to(task.device) for _ in range(2)]
