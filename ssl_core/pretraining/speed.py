"""How fast a run is: step times, waits for data, memory and downloads of all ranks since the last line of metrics."""

import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import psutil
import torch

from sharding.reading.shard_set import StreamStats
from ssl_core.loss.gather import gather_equal

T = TypeVar("T")

_DOWNLOADS: Final = ("data/bytes_fetched", "data/shards_fetched", "data/cache_hits", "data/retries")
_GB: Final = 1e9


class StepWork(NamedTuple):
    """What all ranks do in a step, and what a device could do.

    Attributes:
        samples: of the global batch
        flop_per_sample: see `ssl_core.pretraining.flops.training_flop`; None if it is not known
        peak_flop_per_s: of one device; None if it is not known
    """

    samples: int
    flop_per_sample: float | None
    peak_flop_per_s: float | None


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


class Speed:
    """Measures the steps since the last call of `window`.

    Attributes:
        training_s: seconds of the latest window in which this rank did not wait for data
    """

    def __init__(self, device: torch.device, stream: StreamStats) -> None:
        """Start the first window.

        Args:
            device: device of this rank
            stream: this process's totals so far
        """
        self._device, self._stream = device, stream
        self._gpu_wait = GpuWait(device)
        self._process = psutil.Process()
        self.training_s = 0.0
        self._start()

    def _start(self) -> None:
        self._ends_s = [time.perf_counter()]  # the start of the window, and the end of each of its steps
        self._wait_s = self._learn_s = 0.0

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; a GPU's waits for them count from here on."""
        return self._gpu_wait.watch(batches)

    def add(self, wait_s: float, learn_s: float) -> None:
        """Add a step that has just ended, with this process's seconds of waiting for data and of learning."""
        self._ends_s.append(time.perf_counter())
        self._wait_s += wait_s
        self._learn_s += learn_s

    def window(self, work: StepWork, stream: StreamStats) -> dict[str, float]:
        """Return the metrics of all ranks by tag and start a new window. Collective.

        Args:
            work: what each step did
            stream: this process's totals so far
        """
        elapsed_s = time.perf_counter() - self._ends_s[0]
        gpu_wait_s = self._gpu_wait.seconds()
        wait_s = self._wait_s if gpu_wait_s is None else gpu_wait_s  # without a GPU, the host itself waits
        self.training_s = max(0.0, elapsed_s - wait_s)
        fetched = [now - before for now, before in zip(stream, self._stream, strict=True)]
        steps_s = torch.tensor(self._ends_s, dtype=torch.float64).diff()
        own = torch.tensor([wait_s / elapsed_s, self._host_gb(), self._gpu_gb(), *fetched], dtype=torch.float64)
        ranks = gather_equal(torch.cat([own, steps_s]))  # (W, numbers)
        (waits, host_gb, gpu_gb, *downloads), times_s = ranks[:, : len(own)].unbind(1), ranks[:, len(own) :]
        values = {
            "speed/images_per_s": len(steps_s) * work.samples / elapsed_s,
            "speed/step_p50_s": times_s.quantile(0.5).item(),
            "speed/step_p99_s": times_s.quantile(0.99).item(),
            "speed/data_wait_share": waits.mean().item(),
            "speed/data_wait_share_max": waits.max().item(),
            "speed/data_wait_max_rank": float(waits.argmax()),
            "speed/overhead_share": max(0.0, 1 - (self._wait_s + self._learn_s) / elapsed_s),
            "speed/host_memory_max_gb": host_gb.max().item(),
        }
        if self._device.type == "cuda":
            values["speed/gpu_memory_max_gb"] = gpu_gb.max().item()
        values |= _flop_rates(work, values["speed/images_per_s"] / len(ranks))
        values |= {name: int(counts.sum()) for name, counts in zip(_DOWNLOADS, downloads, strict=True)}
        self._stream = stream
        self._start()
        return values

    def _host_gb(self) -> float:
        return self._process.memory_info().rss / _GB

    def _gpu_gb(self) -> float:
        """Return the peak of this process so far."""
        return torch.cuda.max_memory_allocated(self._device) / _GB if self._device.type == "cuda" else 0.0


def _flop_rates(work: StepWork, images_per_s: float) -> dict[str, float]:
    """Return what one device computes of the model, as far as that is known."""
    if work.flop_per_sample is None:
        return {}
    flop_per_s = images_per_s * work.flop_per_sample
    rates = {"speed/model_tflop_per_s": flop_per_s / 1e12}
    if work.peak_flop_per_s is not None:
        rates["speed/model_flop_utilization"] = flop_per_s / work.peak_flop_per_s
    return rates
