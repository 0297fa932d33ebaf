"""Recovery from faults injected into real runs on this machine, and its cost.

ratio    effective-training-time ratio: ResNet-18 under `sternum supervise -- torchrun` in two processes. A random
         process, which may be torchrun, is killed at random moments. The ratio is the number of steps that count times
         the median time of a step, divided by the time from the first start to the stop
faults   each fault many times, at random steps of a short run in two processes: whether the run ends like the
         undisturbed one, and the cost. Processes are forked with everything imported, so a start takes almost no time;
         `ratio` includes the time of real starts
network  two network namespaces as machines, with real launchers: cables pulled, machines lost (needs root)

Rows with a * end at another number of ranks, so losses agree to 0.2 % and not to the bit.
The figures go to --out as JSON, the tables to a Markdown file of the same name.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Final

from benchmarks.common import machine
from benchmarks.reliability_faults import Row, measure_faults
from benchmarks.reliability_network import measure_network
from benchmarks.reliability_ratio import Ratio, measure_ratio
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.simulation.datasets import write_cell, write_chexpert

SECTIONS: Final = ("ratio", "faults", "network")


def markdown(ratio: Ratio | None, rows: list[Row]) -> str:
    """Return the tables for the docs."""
    lines = []
    if ratio:
        lines += [
            f"Effective-training-time ratio {100 * ratio.effective_share:.1f} %: {ratio.kills} kills in "
            f"{ratio.wall_s:.0f} s, {ratio.steps} steps of {ratio.step_s:.2f} s that count, {ratio.steps_redone} done "
            f"again, {ratio.back_s:.1f} s from a kill to the next step (median), "
            f"{ratio.samples_lost_or_repeated} samples lost or repeated.",
            "",
        ]
    if rows:
        lines += ["| fault | injected | recovered | samples lost or repeated | steps redone | seconds |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
        lines += [f"| {' | '.join([*map(str, astuple(row)[:-1]), f'{row.seconds:.1f}'])} |" for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the images, inject the faults, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file for the figures; the tables go to the same name with .md"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--ratio_s", type=float, default=600.0, help="seconds to train while processes are killed")
    parser.add_argument("--kill_every_s", type=float, default=60.0, help="seconds; one kill in each such period")
    parser.add_argument("--checkpoint_every_steps", type=int, default=10, help="in the run of ratio")
    parser.add_argument("--global_batch", type=int, default=64, help="samples per step of ratio")
    parser.add_argument("--size_px", type=int, default=96, help="width and height of a view, in the run of ratio")
    parser.add_argument("--kills", type=int, default=20, help="runs with three random kills each")
    parser.add_argument("--times", type=int, default=5, help="injections of every other fault")
    parser.add_argument("--network_times", type=int, default=2, help="injections of each fault of the network")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and targets of kills in ratio")
    options = parser.parse_args(arguments)
    ratio: Ratio | None = None
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sternum-reliability-") as name:
        folder = Path(name)
        if "ratio" in options.sections:
            write_cell(folder / "cell", {"train": 512}, seed=0, size_px=160)
            pack(PackConfig("cell", folder / "cell", folder / "shards", 128))
            (folder / "ratio").mkdir()
            ratio = measure_ratio(folder / "shards", folder / "ratio", options)
            print(markdown(ratio, []), flush=True)
        if {"faults", "network"} & set(options.sections):
            write_chexpert(folder / "small", patients=40, seed=0, size_px=64)
            pack(PackConfig("chexpert", folder / "small", folder / "small-shards", shorter_side_px=64))
        for row in injected(folder / "small-shards", folder, options):
            print(row, flush=True)
            rows.append(row)
    print(markdown(ratio, rows))
    write_atomic(options.out.with_suffix(".md"), markdown(ratio, rows))
    write_atomic(options.out, json.dumps(as_json(ratio, rows, options), indent=1) + "\n")


def injected(shards: Path, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the chosen sections."""
    for section in ("faults", "network"):
        (folder / section).mkdir()
    if "faults" in options.sections:
        yield from measure_faults(shards, folder / "faults", options.times, options.kills)
    if "network" in options.sections:
        yield from measure_network(shards, folder / "network", options.network_times)


def as_json(ratio: Ratio | None, rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the JSON file: units, figures, options, machine."""
    return {
        "units": {
            "effective_share": "share of wall_s",
            **dict.fromkeys(("wall_s", "step_s", "back_s", "seconds"), "s"),
            **dict.fromkeys(("steps", "steps_redone"), "steps"),
            **dict.fromkeys(("kills", "injected", "recovered"), "times"),
            "samples_lost_or_repeated": "samples",
        },
        "ratio": ratio and asdict(ratio),
        "faults": [asdict(row) for row in rows],
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "machine": machine("torch"),
    }


if __name__ == "__main__":
    main()
