"""Planning the order of samples: time, memory, and the bytes that each node reads compared with its fair share.

chexpert     224,316 images in 219 shards; all samples of an epoch are counted on 1, 2, 4, 8 and 16 nodes
huge         a billion images in a million shards on 4,096 ranks; all samples of a few of its 512 nodes are counted
sampler      torch's DistributedSampler, which permutes all samples, at the size of chexpert; for a billion samples its
             permutation and its list of Python numbers would take about 50 GB, so it does not run

All ranks plan independently in the same way, so one rank is measured. Sizes of shards vary around their mean, as after
packing to a size in bytes. The bytes of a shard count once for each node that needs it in an epoch. `held at once` is
the largest total of shards between their first and last use on a node: a cache of this size fetches no shard twice.
"""

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import machine, table
from infra.storage.files import write_atomic
from sharding.format.manifest import VERSION, Manifest, Shard, decode_manifest, encode_manifest
from sharding.reading.order import SampleOrder

Int64 = npt.NDArray[np.int64]

REPEATS = 5
EPOCH = 1  # the epoch that is counted; epoch 0 is not typical, because lane 0 begins at its start
UNITS = {
    "first_batch_ms": "milliseconds, including the plan of an epoch; median",
    "batch_ms": "milliseconds, median; batch_slowest_ms: the slowest batch, which shuffles windows",
    "resumption_ms": "milliseconds from the start to the first batch, in the middle of a later epoch; median",
    "peak_mb": "10^6 bytes allocated while planning, without the sizes of the shards",
    "manifest": "10^6 bytes of the file, seconds to read it, 10^6 bytes in memory",
    "read_gb": "10^9 bytes that a node reads in an epoch, on average and at most",
    "fair_gb": "10^9 bytes of the set divided by the nodes",
    "held_mb": "10^6 bytes of shards that a node needs at once, at most",
}


@dataclass(frozen=True)
class Plan:
    """A set of shards and a run over it; `image_kb` is the size of an image in its shard, in 10^3 bytes."""

    samples: int
    shards: int
    lanes: int
    global_batch: int
    window: int
    ranks: int
    image_kb: float = 40.0
    seed: int = 0

    def shard_samples(self) -> Int64:
        """Return the samples of each shard, which vary by a tenth of their mean."""
        weights = 1 + 0.1 * np.random.default_rng(self.seed).standard_normal(self.shards).clip(-3, 3)
        ends: Int64 = np.round(np.cumsum(weights) * (self.samples / weights.sum())).astype(np.int64)
        return np.diff(ends, prepend=np.int64(0))

    def order(self, shard_samples: Int64) -> SampleOrder:
        """Return a new order."""
        return SampleOrder(shard_samples, self.lanes, self.global_batch, self.window, self.seed)


def measure_planning(plan: Plan, steps: int) -> dict[str, float]:
    """Return times and memory of the last rank; memory in a separate pass, because measuring it takes time."""
    sizes, rank = plan.shard_samples(), plan.ranks - 1
    middle = int(2.5 * plan.samples / plan.global_batch)

    def first(step: int) -> tuple[SampleOrder, float]:
        began_s = time.perf_counter()
        order = plan.order(sizes)
        order.batch(step, rank, plan.ranks)
        return order, 1e3 * (time.perf_counter() - began_s)

    order, _ = first(0)  # warms up
    later_ms = []
    for step in range(1, steps + 1):
        began_s = time.perf_counter()
        order.batch(step, rank, plan.ranks)
        later_ms.append(1e3 * (time.perf_counter() - began_s))
    return {
        "first_batch_ms": statistics.median(first(0)[1] for _ in range(REPEATS)),
        "batch_ms": statistics.median(later_ms),
        "batch_slowest_ms": max(later_ms),
        "resumption_ms": statistics.median(first(middle)[1] for _ in range(REPEATS)),
        "peak_mb": _peak_mb(plan, sizes, steps),
    }


def _peak_mb(plan: Plan, sizes: Int64, steps: int) -> float:
    """Return the peak of memory around the border of two epochs, where an order holds the plans of both."""
    border = plan.samples // plan.global_batch
    tracemalloc.start()
    try:
        order = plan.order(sizes)
        for step in range(max(0, border - steps // 2), border + steps // 2):
            order.batch(step, plan.ranks - 1, plan.ranks)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def measure_manifest(plan: Plan) -> dict[str, float]:
    """Return the cost of reading the list of shards, which each process does before it plans."""
    entries = [
        Shard(f"set-train-100-{number:07d}.tar", samples, 40_000 * samples, f"{number:064x}", f"{number:064x}", 100)
        for number, samples in enumerate(plan.shard_samples().tolist())
    ]
    content = encode_manifest(Manifest(VERSION, "set", "a test", {}, plan.samples, plan.samples, 0.5, 0.2, entries, []))
    entries.clear()
    began_s = time.perf_counter()
    decode_manifest(content, "the manifest")
    read_s = time.perf_counter() - began_s
    tracemalloc.start()
    try:
        manifest = decode_manifest(content, "the manifest")
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(manifest.shards) == plan.shards
    return {"file_mb": len(content) / 1e6, "read_s": read_s, "held_mb": held_bytes / 1e6}


def measure_reading(plan: Plan, nodes: int, counted: list[int]) -> dict[str, float]:
    """Return the bytes that these nodes read in one epoch, compared with their fair share."""
    sizes = plan.shard_samples()
    order = plan.order(sizes)
    shard_bytes = sizes * plan.image_kb * 1e3
    fair = shard_bytes.sum() / nodes
    read, held = [], []
    for node in counted:
        first, last = first_and_last_use(order, node, nodes)
        used = first >= 0
        read.append(float(shard_bytes[used].sum()))
        held.append(_held_bytes(first[used], last[used], shard_bytes[used]))
    return {
        "nodes": nodes,
        "nodes_counted": len(counted),
        "fair_gb": fair / 1e9,
        "read_gb": statistics.mean(read) / 1e9,
        "read_gb_most": max(read) / 1e9,
        "read_over_fair": statistics.mean(read) / fair,
        "read_over_fair_most": max(read) / fair,
        "held_mb": max(held) / 1e6,
    }


def first_and_last_use(order: SampleOrder, node: int, nodes: int) -> tuple[Int64, Int64]:
    """Return for each shard the first and the last step of the epoch in which a node reads it, or -1.

    Like a rank, a node has one block of lanes: those of its ranks, end to end.
    """
    first, last = np.full((2, len(order.shard_samples)), -1)
    for step, shards in _shards_by_step(order, node, nodes):
        fresh = shards[first[shards] < 0]
        first[fresh] = step
        last[shards] = step
    return first, last


def _shards_by_step(order: SampleOrder, node: int, nodes: int) -> Iterator[tuple[int, Int64]]:
    for step in range(order.first_step_after_epoch(EPOCH - 1) - 1, order.first_step_after_epoch(EPOCH)):
        batch = order.batch(step, node, nodes)
        yield step, np.unique(batch.shard[batch.epoch == EPOCH])


def _held_bytes(first: Int64, last: Int64, size_bytes: npt.NDArray[np.floating[Any]]) -> float:
    """Return the largest total size of shards that are between their first and last use at one step."""
    steps = np.concatenate([first, last + 1])
    change = np.concatenate([size_bytes, -size_bytes])
    by_step = np.lexsort((change, steps))
    return float(np.cumsum(change[by_step]).max())


def measure_sampler(plan: Plan, nodes: int) -> dict[str, float]:
    """Return the time to the first index of an epoch, and the bytes a node reads, with torch's sampler."""
    from torch.utils.data import DistributedSampler  # noqa: PLC0415 - nothing else needs torch

    began_s = time.perf_counter()
    sampler: Any = DistributedSampler(range(plan.samples), num_replicas=plan.ranks, rank=plan.ranks - 1, shuffle=True)  # type: ignore[arg-type]
    next(iter(sampler))
    first_ms = 1e3 * (time.perf_counter() - began_s)
    ends = np.cumsum(plan.shard_samples())
    touched = set()
    for rank in range(plan.ranks // nodes):  # the ranks of the first node
        indices = np.fromiter(DistributedSampler(range(plan.samples), plan.ranks, rank), np.int64)  # type: ignore[arg-type]
        touched |= set(np.unique(np.searchsorted(ends, indices, side="right")).tolist())
    return {"first_batch_ms": first_ms, "nodes": nodes, "read_over_fair": len(touched) * nodes / plan.shards}


def report(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    planning = [
        [
            name,
            *(f"{values[key]:.3g} ms" for key in ("first_batch_ms", "batch_ms", "batch_slowest_ms", "resumption_ms")),
            f"{values['peak_mb']:.1f} MB",
        ]
        for name, values in ((name, result[name]["planning"]) for name in ("chexpert", "huge"))
    ]
    manifest, sampler = result["huge"]["manifest"], result["sampler"]
    planning.append(["huge: its manifest", f"{manifest['read_s']:.3g} s", "", "", "", f"{manifest['held_mb']:.1f} MB"])
    planning.append(["sampler, chexpert", f"{sampler['first_batch_ms']:.3g} ms", "", "", "", ""])
    reading = [
        [
            f"{name}, {row['nodes_counted']} of {row['nodes']} nodes",
            *(f"{row[key]:.3f} GB" for key in ("fair_gb", "read_gb")),
            *(f"{row[key]:.3f} x" for key in ("read_over_fair", "read_over_fair_most")),
            f"{row['held_mb']:.0f} MB",
        ]
        for name in ("chexpert", "huge")
        for row in result[name]["reading"]
    ]
    reading.append(
        [f"sampler, chexpert, 1 of {sampler['nodes']}", "", "", f"{sampler['read_over_fair']:.3f} x", "", ""]
    )
    return "\n".join(
        [
            "planning, one rank",
            table(["", "first batch", "batch", "slowest", "resumption", "peak"], planning),
            "reading, one epoch",
            table(["", "fair share", "a node", "of fair", "most", "held at once"], reading),
        ]
    )


def _even(count: int, nodes: int) -> list[int]:
    """Return `count` evenly spaced nodes, including the first and the last."""
    return sorted({round(number) for number in np.linspace(0, nodes - 1, min(count, nodes))})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--samples", type=int, default=10**9, help="of the huge set")
    parser.add_argument("--shards", type=int, default=10**6, help="of the huge set")
    parser.add_argument("--ranks", type=int, default=4096, help="of the huge run; 8 per node")
    parser.add_argument("--nodes", type=int, default=4, help="nodes of the huge run to count")
    parser.add_argument("--small_samples", type=int, default=224_316, help="of the set like CheXpert")
    parser.add_argument("--small_shards", type=int, default=219, help="of the set like CheXpert")
    parser.add_argument("--steps", type=int, default=1000, help="number of later batches to time")
    options = parser.parse_args(arguments)
    small = Plan(options.small_samples, options.small_shards, lanes=128, global_batch=1024, window=16384, ranks=128)
    huge = Plan(
        options.samples,
        options.shards,
        options.ranks,
        global_batch=16 * options.ranks,
        window=256 * options.ranks,
        ranks=options.ranks,
    )
    nodes = huge.ranks // 8
    result = {
        "units": UNITS,
        "chexpert": {
            "plan": asdict(small),
            "planning": measure_planning(small, options.steps),
            "reading": [measure_reading(small, count, list(range(count))) for count in (1, 2, 4, 8, 16)],
        },
        "huge": {
            "plan": asdict(huge),
            "planning": measure_planning(huge, options.steps),
            "manifest": measure_manifest(huge),
            "reading": [measure_reading(huge, nodes, _even(options.nodes, nodes))],
        },
        "sampler": measure_sampler(small, 16),
        "machine": machine("numpy", "torch"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
