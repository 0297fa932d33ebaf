"""Faults of machines and cables: torchrun under `sternum supervise` in two network namespaces."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.reliability_faults import Ended, Row, row
from benchmarks.reliability_ratio import steps_seen
from ssl_core.pretraining.config import PretrainConfig
from tests.support.faulty_training import assert_same_bits, assert_same_run, read_outcome, total_steps
from tests.support.network_namespaces import (
    Machines,
    elastic_config,
    machine_config,
    machine_network,
    run_on_machines,
)

_MIDST: Final = 10  # the step at which faults are injected
_GONE_S: Final = 5.0  # until a lost machine comes back


def nothing(_: Machines) -> None:
    """Leave the run undisturbed."""


def pull(seconds: float) -> Callable[[Machines], None]:
    """Return a fault that pulls a cable for some seconds."""
    return lambda both: both.pull_cable(1, seconds)


def lose(node: int) -> Callable[[Machines], None]:
    """Return a fault that removes a machine and brings it back."""

    def lost(both: Machines) -> None:
        both.lose(node)
        time.sleep(_GONE_S)
        both.bring_back(node)

    return lost


def shrink(both: Machines) -> None:
    """Remove a machine until the other has continued alone, then bring it back."""
    both.lose(1)
    both.wait_for_step(both.step() + 8)
    both.bring_back(1)


def measure_network(shards: Path, folder: Path, times: int) -> Iterator[Row]:
    """Yield a row for each fault.

    Raises:
        NoNetwork: if this machine does not allow network namespaces.
    """
    runs = iter(range(1000))

    def train(disturb: Callable[[Machines], None], config: PretrainConfig, nodes: str) -> Ended:
        began_s = time.perf_counter()
        with (
            machine_network() as network,
            run_on_machines(network, config, nodes) as both,
            steps_seen(config) as seen,
        ):
            both.wait_for_step(_MIDST)
            disturb(both)
            both.end()
        took_s = time.perf_counter() - began_s
        return Ended(read_outcome(config.run_folder), took_s, len(seen) - total_steps(config))

    def together(disturb: Callable[[Machines], None], timeout_s: float = 60.0) -> Ended:
        return train(disturb, machine_config(folder / f"run-{next(runs)}", shards, timeout_s), "2")

    def elastic(disturb: Callable[[Machines], None]) -> Ended:
        return train(disturb, elastic_config(folder / f"run-{next(runs)}", shards), "1:2")

    expected = together(nothing)
    for fault, disturb, timeout_s in (
        ("a cable pulled for 5 s (timeout 60 s)", pull(5), 60.0),
        ("a cable pulled for 30 s (timeout 60 s)", pull(30), 60.0),
        ("a cable pulled for 30 s (timeout 15 s)", pull(30), 15.0),
        ("the second machine lost, and back 5 s later", lose(1), 60.0),
        ("the first machine lost, and back 5 s later", lose(0), 60.0),
    ):
        ends = [together(disturb, timeout_s) for _ in range(times)]
        yield row(fault, ends, expected, expected.took_s, assert_same_bits)
    expected = elastic(nothing)
    ends = [elastic(shrink) for _ in range(times)]
    yield row(
        "a machine lost, the other continues alone, a new one joins (--nnodes=1:2) *",
        ends,
        expected,
        expected.took_s,
        assert_same_run,
    )
