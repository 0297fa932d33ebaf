"""Means of metrics over the steps since the last line: loss and its health, speed, and downloads."""

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import torch

from infra.processes import sum_over_ranks
from sharding.reading.shard_set import StreamStats
from ssl_core.loss.ntxent import LossReport

T = TypeVar("T")

# Tags of TensorBoard and keys of metrics.jsonl, in the order of the fields.
_LOSS_TAGS: Final = (
    "loss",
    "contrast/top1",
    "contrast/top5",
    "contrast/alignment",
    "contrast/uniformity",
    "contrast/deviation",
)
_STREAM_TAGS: Final = ("data/bytes_fetched", "data/shards_fetched", "data/cache_hits", "data/retries")


class GpuWait:
    """How long a GPU waits for batches, measured by events in its stream.

    The host's time tells nothing: DALI returns once its work is queued, and a starved GPU waits inside the stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and note when the GPU has done all earlier work and when it has the batch."""
        if not self._on_gpu:
            yield from batches
            return
        iterator = iter(batches)
        while True:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            batch = next(iterator, None)
            if batch is None:
                return
            after.record()
            self._events.append((before, after))
            yield batch

    def seconds(self) -> float | None:
        """Return the sum since the last call; None without a GPU."""
        if not self._on_gpu:
            return None
        events, self._events = self._events, []
        if events:
            events[-1][1].synchronize()
        return sum(before.elapsed_time(after) for before, after in events) / 1000


class RunningMeans:
    """Means over the steps since the last call of `means`; until then the numbers stay on their device.

    Attributes:
        summary: the latest means in one line
    """

    def __init__(self, global_batch: int, stream: StreamStats) -> None:
        """Start the first window.

        Args:
            global_batch: samples of a step on all ranks
            stream: this process's totals so far
        """
        self._global_batch = global_batch
        self._stream = stream  # this process's totals at the start of the window
        self.summary = ""
        self._start()

    def _start(self) -> None:
        self._steps = 0
        self._reports: list[LossReport] = []
        self._wait_s = self._learn_s = 0.0
        self._since_s = time.perf_counter()

    def add(self, report: LossReport | None, wait_s: float, learn_s: float) -> None:
        """Add a step.

        Args:
            report: the loss and its health; None for a skipped step
            wait_s: seconds of waiting for data
            learn_s: seconds of learning
        """
        self._steps += 1
        if report is not None:
            self._reports.append(report)
        self._wait_s += wait_s
        self._learn_s += learn_s

    def means(self, stream: StreamStats, gpu_wait_s: float | None = None) -> dict[str, float]:
        """Return the means by name and start a new window. Collective: downloads are summed over all ranks.

        Args:
            stream: this process's totals so far
            gpu_wait_s: how long the GPU waited for batches in this window; without a GPU the host's waits count
        """
        elapsed_s = time.perf_counter() - self._since_s
        values = dict(zip(_LOSS_TAGS, _mean(self._reports), strict=True))
        fetched = [now - before for now, before in zip(stream, self._stream, strict=True)]
        values |= {
            "speed/images_per_s": self._steps * self._global_batch / elapsed_s,
            "speed/data_wait_share": (self._wait_s if gpu_wait_s is None else gpu_wait_s) / elapsed_s,
            "speed/overhead_share": max(0.0, 1 - (self._wait_s + self._learn_s) / elapsed_s),
        }
        values |= dict(zip(_STREAM_TAGS, sum_over_ranks(*fetched), strict=True))
        self._stream = stream
        loss, top1, images_per_s = (values[name] for name in ("loss", "contrast/top1", "speed/images_per_s"))
        self.summary = f"loss {loss:.4f}  top-1 {top1:.3f}  {images_per_s:.0f} images/s"
        self._start()
        return values


def _mean(reports: list[LossReport]) -> list[float]:
    if not reports:  # every step was skipped
        return [float("nan")] * len(_LOSS_TAGS)
    means: list[float] = torch.stack([torch.stack(list(report)) for report in reports]).mean(0).tolist()
    return means
