"""Extraction of the features of several backbones on CPUs: one process with all threads, against several sharing them.

Each repeat runs both in turn on the same simulated films and stores the features in an empty folder; the seconds
include the start of the processes. The features must be equal to the last bit.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import machine, table
from evaluation.data.extractor import build_extractor
from evaluation.data.feature_sources import untrained_sources
from evaluation.data.labeled_sets import LabeledSet, ProbeData, open_labeled_sets
from evaluation.data.parallel_extraction import ParallelExtractor, extract_in_processes
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.simulation.datasets import write_cell
from ssl_core.model.encoder import ModelConfig, untrained_backbone
from ssl_core.model.published import Input


def extract(labeled_set: LabeledSet, options: argparse.Namespace, processes: int) -> tuple[float, dict[str, bytes]]:
    """Return the seconds, and the stored features by the names of their files."""
    untrained = partial(untrained_backbone, ModelConfig(options.backbone), size_px=options.size_px)
    sources = untrained_sources(untrained, 0, options.backbones)
    with TemporaryDirectory() as folder:
        extractor = build_extractor(
            Path(folder),
            Input(options.size_px, (0.5,), (0.25,)),
            antialias=False,
            fit="pad",
            mirrored=False,
            view_executor="torchvision",
            local_batch=64,
        )
        began_s = time.perf_counter()
        if processes == 1:
            ParallelExtractor(extractor).features(sources, [labeled_set])
        else:
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads() // processes)  # the processes read it
            extract_in_processes(extractor, sources, [labeled_set], [torch.device("cpu")] * processes)
        taken_s = time.perf_counter() - began_s
        return taken_s, {path.name: path.read_bytes() for path in Path(folder).glob("*.safetensors")}


def measure(labeled_set: LabeledSet, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each repeat of both ways."""
    ways: dict[str, Callable[[], tuple[float, dict[str, bytes]]]] = {
        "one process": lambda: extract(labeled_set, options, 1),
        f"{options.processes} processes": lambda: extract(labeled_set, options, options.processes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    expected: dict[str, bytes] = {}
    for repeat in range(options.repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:  # alternate the order, so that a drift affects both alike
            taken_s, stored = ways[name]()
            seconds[name].append(taken_s)
            expected = expected or stored
            assert stored == expected, f"{name} has other features"
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--backbones", type=int, default=4, help="how many of them")
    parser.add_argument("--size_px", type=int, default=224)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        write_cell(Path(folder) / "cell", {"train": options.images}, seed=0, size_px=400)
        pack(PackConfig("cell", Path(folder) / "cell", Path(folder) / "shards"))
        [labeled_set] = open_labeled_sets(ProbeData([str(Path(folder) / "shards")]))
        seconds = measure(labeled_set, options)
    images = options.images * options.backbones
    rows = [
        [name, f"{median(taken):.1f}", f"{min(taken):.1f} to {max(taken):.1f}", f"{images / median(taken):.1f}"]
        for name, taken in seconds.items()
    ]
    print(table(["", "s", "range", "images/s"], rows), flush=True)
    result = {
        "seconds": seconds,
        "units": {"seconds": "s"},
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "machine": machine("torch", "torchvision"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
