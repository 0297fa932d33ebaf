import time
from collections.abc import Iterator

import pytest
import torch

from ssl_core.pretraining.running_means import GpuWait


class HostEvent:
    """Stands in for an event of a GPU that is always idle: it happens when it is recorded."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_s = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: "HostEvent") -> float:
        return (later.at_s - self.at_s) * 1000


def late(items: int, seconds: float) -> Iterator[int]:
    for item in range(items):
        time.sleep(seconds)
        yield item


def test_an_idle_gpu_waits_as_long_as_the_batches_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", HostEvent)
    wait = GpuWait(torch.device("cuda"))
    taken, waited_s = [], []
    for item in wait.watch(late(4, 0.02)):
        taken.append(item)
        time.sleep(0.01)  # learning is no wait
        if item == 1:
            waited_s.append(wait.seconds())
    assert taken == [0, 1, 2, 3]
    waited_s += [wait.seconds(), wait.seconds()]
    assert all(seconds is not None and seconds >= 0.04 for seconds in waited_s[:2])  # of two batches each
    assert waited_s[2] == 0


def test_without_a_gpu_the_host_itself_waits() -> None:
    wait = GpuWait(torch.device("cpu"))
    assert list(wait.watch(iter([1, 2]))) == [1, 2]
    assert wait.seconds() is None
