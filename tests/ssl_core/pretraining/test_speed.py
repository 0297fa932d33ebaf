import time
from collections.abc import Iterator

import pytest
import torch

from sharding.reading.shard_set import StreamStats
from ssl_core.pretraining.speed import GpuWait, Speed, StepWork
from tests.support.process_group import on_ranks


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


def one_late(rank: int, world: int) -> dict[str, float]:
    """Two steps, in which only the last rank waits for data."""
    speed = Speed(torch.device("cpu"), StreamStats())
    for _ in range(2):
        wait_s = 0.05 if rank == world - 1 else 0.0
        time.sleep(0.06)
        speed.add(wait_s, learn_s=0.01)
    return speed.window(StepWork(8, flop_per_sample=1e9, peak_flop_per_s=None), StreamStats(10 + rank, 1, 0, 0))


def test_a_rank_that_waits_for_data_is_named() -> None:
    values, others = on_ranks(2, one_late)
    assert values["speed/data_wait_max_rank"] == 1
    assert values["speed/data_wait_share_max"] == pytest.approx(2 * values["speed/data_wait_share"])
    assert 0.06 <= values["speed/step_p50_s"] <= values["speed/step_p99_s"]
    assert values["data/bytes_fetched"] == 21
    assert values["speed/model_tflop_per_s"] == pytest.approx(values["speed/images_per_s"] * 1e9 / 2 / 1e12)
    assert "speed/model_flop_utilization" not in values
    assert others["speed/step_p99_s"] == values["speed/step_p99_s"]
