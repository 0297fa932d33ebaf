"""Loading speed compared with its limit and with other libraries: two views of the same images.

The loaders take turns; figures are medians of the repeats.

sternum, DALI              batches as a training run uses them: order, verified bytes, drawn parameters, DALI
its limit, DALI            the same executor, with encoded bytes and parameters in memory
sternum, torchvision       the same with the torchvision executor
its limit, torchvision
sternum, ..., antialias    as above, with views.antialias
..., siblings of a study   the same with second views of other images, for sets that have them, such as --patients
..., siblings of a patient
torchvision + DataLoader   image files, Pillow and torchvision.transforms.v2 in the workers of a DataLoader
webdataset                 our shards, webdataset's shuffle and decoding, the same transforms, its WebLoader
mosaicml-streaming         its shards of the same bytes, its dataset, the same transforms, a DataLoader
DALI, separate operators   our shards, DALI's own reader and random numbers, one operator per augmentation (solo-learn)

Each loader runs in its own process and rests while another is measured. The figures are images/s, CPU time per image
(all processes and threads of a loader), and the share of time that a consumer waits if it takes 4/5 of the rate just
measured: 0 for a loader that makes batches ahead of time. With --step, the consumer is the forward and backward pass
of a ResNet-50 in bf16 on both views; then images/s are those of loading and training together.

The images are simulated radiographs; --shards adds your packed sets.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from benchmarks.common import installed, machine, one_line, table
from benchmarks.loader_ways import NEEDS, WAYS, Batches, Task
from infra.errors import RunFailed
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Same, Siblings
from sharding.simulation.datasets import write_cell, write_chexpert

SHORTER_SIDE_PX: Final = 320
_PACE: Final = 0.8  # of the rate just measured, which the simulated consumer takes
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_REST_S: Final = 0.2


class Figures(NamedTuple):
    """One turn of one loader."""

    images_per_s: float
    cpu_us_per_image: float
    wait_share: float


@dataclass(frozen=True)
class Turn:
    """The course of a turn: batches to warm up, then batches for `window_s`, with or without a training step."""

    warm_batches: int
    window_s: float
    step: bool


def serve(connection: Connection, name: str, task: Task, turn: Turn) -> None:
    """Build a loader, then answer every True with the figures of a turn, or with an error in one line."""
    multiprocessing.set_start_method("fork", force=True)  # the default start method of a DataLoader's workers
    try:
        consume = training_step(task) if turn.step else None
        batches = WAYS[name](task)
        while connection.recv():
            connection.send(take_turn(batches, turn, task.device, consume))
            rest()
    except Exception as error:  # for a peer this is a result; for ours the caller raises it
        connection.send(one_line(error))


def take_turn(
    batches: Batches, turn: Turn, device: str, consume: Callable[[Sequence[torch.Tensor]], None] | None
) -> Figures:
    """Measure the rate, then the waiting; with a step, both at once."""
    for _ in range(turn.warm_batches):
        next(batches)
    before_s = cpu_s()
    images, _, seconds = draw(batches, turn.window_s, device, consume or (lambda views: None))
    cpu_us = (cpu_s() - before_s) / images * 1e6
    pace_s = seconds / images / _PACE
    paced = consume or (lambda views: time.sleep(pace_s * len(views[0])))
    more, waited_s, paced_s = draw(batches, turn.window_s / 2, device, paced)
    return Figures((images + more) / (seconds + paced_s) if consume else images / seconds, cpu_us, waited_s / paced_s)


def draw(
    batches: Batches, window_s: float, device: str, consume: Callable[[Sequence[torch.Tensor]], None]
) -> tuple[int, float, float]:
    """Consume for a while; return the images, the seconds of waiting, and all seconds."""
    images, waited_s = 0, 0.0
    began_s = now_s = time.perf_counter()
    while now_s - began_s < window_s:
        views = next(batches)
        if device != "cpu":
            torch.cuda.synchronize()  # a batch counts once it is complete
        waited_s += time.perf_counter() - now_s
        consume(views)
        images += len(views[0])
        now_s = time.perf_counter()
    return images, waited_s, now_s - began_s


def training_step(task: Task) -> Callable[[Sequence[torch.Tensor]], None]:
    """Return the forward and backward pass of a one-channel ResNet-50 in bf16."""
    from torchvision.models import resnet50  # noqa: PLC0415 - only needed for --step

    model = resnet50()
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    model = model.to(task.device, memory_format=torch.channels_last).train()

    def step(views: Sequence[torch.Tensor]) -> None:
        images = torch.cat(list(views)).contiguous(memory_format=torch.channels_last)  # (2n, 1, S, S)
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        if task.device != "cpu":
            torch.cuda.synchronize()

    return step


def cpu_s() -> float:
    """Return the CPU seconds of this process and its descendants so far (to a clock tick each)."""
    return _cpu_ticks(os.getpid()) / _TICKS_PER_S


def _cpu_ticks(process: int) -> int:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return int(fields[11]) + int(fields[12]) + sum(_cpu_ticks(child) for child in children)


def rest() -> None:
    """Wait until this loader has filled its queues, so that it takes no time from the next one."""
    spent_s, before_s = cpu_s(), -1.0
    while spent_s - before_s > 0.02:
        time.sleep(_REST_S)
        before_s, spent_s = spent_s, cpu_s()


class Loader:
    """A loader in its own process."""

    def __init__(self, name: str, task: Task, turn: Turn) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, task, turn))
        self.process.start()
        theirs.close()

    def turn(self) -> Figures | str:
        """Return the figures of a turn, or an error in one line."""
        try:
            self.connection.send(True)
            answer: Figures | str = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return f"its process ended with exit code {self.process.exitcode}"
        return answer

    def close(self) -> None:
        """End the process; a loader at rest has nothing to save."""
        with suppress(OSError):
            self.connection.send(False)
        self.process.join(5)
        self.process.kill()
        self.process.join()


def measure(task: Task, turn: Turn, repeats: int, ways: Sequence[str]) -> dict[str, list[Figures] | str]:
    """Return the figures of all turns for each loader, or the reason why there are none."""
    results: dict[str, list[Figures] | str] = {}
    loaders: dict[str, Loader] = {}
    try:
        for name in ways:
            module, remedy = NEEDS.get(name, ("torch", ""))
            if not installed(module):
                results[name] = f"not installed ({remedy})"
                continue
            folder = task.scratch / f"{task.size_px}-{len(results)}"
            folder.mkdir()
            results[name] = []
            loaders[name] = Loader(name, Task(**{**vars(task), "scratch": folder}), turn)
            record(results, name, loaders[name].turn(), counts=False)  # builds the loader and warms it up
        for repeat in range(repeats):
            for name in list(loaders)[
                :: -1 if repeat % 2 else 1
            ]:  # alternate the order, so that a drift affects all alike
                if not isinstance(results[name], str):
                    record(results, name, loaders[name].turn(), counts=True)
    finally:
        for loader in loaders.values():
            loader.close()
    return results


def record(results: dict[str, list[Figures] | str], name: str, answer: Figures | str, counts: bool) -> None:
    """Record the figures of a turn; a failed peer is listed in the table, a failure of ours ends the benchmark."""
    if isinstance(answer, str):
        if "sternum" in name or "limit" in name:
            raise RunFailed(f"{name}: {answer}")
        results[name] = f"failed: {answer}"
    elif counts:
        figures = results[name]
        assert isinstance(figures, list)
        figures.append(answer)


def shares(results: dict[str, list[Figures] | str], name: str, other: str) -> list[float]:
    """Return the rate of `name` divided by the rate of `other`, for each turn."""
    return [a.images_per_s / b.images_per_s for a, b in pairs(results, name, other)]


def pairs(results: dict[str, list[Figures] | str], name: str, other: str) -> list[tuple[Figures, Figures]]:
    """Return the figures of both loaders in each turn; an empty list if either has none."""
    ours, theirs = results.get(name, ""), results.get(other, "")
    if isinstance(ours, str) or isinstance(theirs, str):
        return []
    return list(zip(ours, theirs, strict=True))


def text(results: dict[str, list[Figures] | str]) -> str:
    """Return the medians of a block in a table."""
    ours = next((name for name in results if "sternum" in name and not isinstance(results[name], str)), "")
    rows = []
    for name, figures in results.items():
        if isinstance(figures, str):
            rows.append([name, figures])
            continue
        rates = [turn.images_per_s for turn in figures]
        rows.append(
            [
                name,
                f"{statistics.median(rates):.1f}",
                f"{min(rates):.1f} to {max(rates):.1f}",
                f"{statistics.median(turn.cpu_us_per_image for turn in figures):.0f}",
                f"{100 * statistics.median(turn.wait_share for turn in figures):.1f} %",
                f"{statistics.median(shares(results, ours, name)):.2f} x" if ours else "",
            ]
        )
    header = ["", "images/s", "range", "CPU us/image", "waiting", f"{ours} is" if ours else ""]
    lines = [table(header, rows)]
    for kind in ("DALI", "torchvision"):
        name, other = f"sternum, {kind}", f"its limit, {kind}"
        if reached := shares(results, name, other):
            span = f"{100 * min(reached):.1f} to {100 * max(reached):.1f}"
            cpu = statistics.median(b.cpu_us_per_image / a.cpu_us_per_image for a, b in pairs(results, name, other))
            lines.append(
                f"  {kind}: {100 * statistics.median(reached):.1f} % of the limit ({span}); "
                f"the limit takes {100 * cpu:.1f} % of the CPU time"
            )
        for others in ("siblings of a study", "siblings of a patient"):
            for whose in (f"sternum, {kind}", f"its limit, {kind}"):
                lines += compared(results, f"{whose}, {others}", whose)
        lines += compared(results, f"{name}, siblings of a patient", f"{other}, siblings of a patient")
    return "\n".join(lines)


def compared(results: dict[str, list[Figures] | str], name: str, other: str) -> list[str]:
    """Return a line with the rate of `name` in percent of that of `other`; none if either was not measured."""
    if not (reached := [100 * share for share in shares(results, name, other)]):
        return []
    cpu = statistics.median(100 * b.cpu_us_per_image / a.cpu_us_per_image for a, b in pairs(results, name, other))
    span = f"{min(reached):.1f} to {max(reached):.1f}"
    return [f"  {name}: {statistics.median(reached):.1f} % of the rate of {other} ({span}), by CPU time {cpu:.1f} %"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the images, measure, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--images", type=int, default=640, help="simulated radiographs; 0 for none")
    parser.add_argument("--patients", type=int, default=0, help="simulated patients with several images each")
    parser.add_argument("--shards", type=Path, nargs="*", default=[], help="more packed sets, each measured separately")
    parser.add_argument("--size_px", type=int, nargs="+", default=[224, 96], help="width and height of a view")
    parser.add_argument("--local_batch", type=int, default=64)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs to use, and workers or threads of each loader")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    usual = [name for name in WAYS if "siblings" not in name]
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=usual, help="loaders to measure")
    parser.add_argument("--step", action="store_true", help="consume the batches by training a ResNet-50")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--window_s", type=float, default=5.0, help="length of a turn; waiting takes half of it more")
    parser.add_argument("--warm_batches", type=int, default=8, help="batches to warm up at the start of a turn")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus])
    turn = Turn(options.warm_batches, options.window_s, options.step)
    blocks: dict[str, dict[str, list[Figures] | str]] = {}
    with tempfile.TemporaryDirectory(prefix="sternum-loader-") as name:
        folder = Path(name)
        sets = {str(shards): shards for shards in options.shards}
        if options.images:
            write_cell(folder / "cell", {"train": options.images}, seed=0, size_px=400)
            pack(PackConfig("cell", folder / "cell", folder / "shards", SHORTER_SIDE_PX))
            sets = {f"simulated, {options.images} images of {SHORTER_SIDE_PX} px": folder / "shards", **sets}
        if options.patients:
            write_chexpert(folder / "chexpert", options.patients, seed=0, size_px=400)
            pack(PackConfig("chexpert", folder / "chexpert", folder / "patients", SHORTER_SIDE_PX))
            sets = {describe(folder / "patients"): folder / "patients", **sets}
        for number, (what, shards) in enumerate(sets.items()):
            for size_px in options.size_px:
                block = f"{what}, two views of {size_px} px"
                scratch = folder / f"{number}-{size_px}"
                scratch.mkdir()
                task = Task(shards, scratch, size_px, options.local_batch, options.cpus, options.device)
                blocks[block] = measure(task, turn, options.repeats, options.ways)
                print(f"{block}\n{text(blocks[block])}", flush=True)
    write_atomic(options.out, json.dumps(as_json(blocks, options, turn), indent=1) + "\n")


def describe(patients: Path) -> str:
    """Describe the simulated patients by how many of their images have siblings."""
    shards = ShardSet([patients])
    same: tuple[Same, ...] = ("study", "patient")
    shares = [f"{100 * Siblings(shards, what, 1, 0).has_any.mean():.0f} % with siblings of a {what}" for what in same]
    return f"simulated, {shards.samples} images of patients, {SHORTER_SIDE_PX} px, {', '.join(shares)}"


def as_json(
    blocks: dict[str, dict[str, list[Figures] | str]], options: argparse.Namespace, turn: Turn
) -> dict[str, Any]:
    """Return the content of the JSON file: units, medians, every turn, options, machine."""

    def medians(figures: list[Figures]) -> dict[str, float]:
        return {field: statistics.median(values) for field, values in columns(figures).items()}

    def columns(figures: list[Figures]) -> dict[str, list[float]]:
        return {field: [getattr(turn, field) for turn in figures] for field in Figures._fields}

    measured = {
        block: {name: figures for name, figures in results.items() if not isinstance(figures, str)}
        for block, results in blocks.items()
    }
    return {
        "units": {"images_per_s": "images/s", "cpu_us_per_image": "us/image", "wait_share": "share of the time"},
        "median": {block: {name: medians(f) for name, f in results.items()} for block, results in measured.items()},
        "share_of_limit": {
            block: {kind: shares(results, f"sternum, {kind}", f"its limit, {kind}") for kind in ("DALI", "torchvision")}
            for block, results in blocks.items()
        },
        "all": {block: {name: columns(f) for name, f in results.items()} for block, results in measured.items()},
        "left_out": {
            block: {name: line for name, line in results.items() if isinstance(line, str)}
            for block, results in blocks.items()
        },
        "turn": asdict(turn),
        "repeats": options.repeats,
        "local_batch": options.local_batch,
        "cpus": options.cpus,
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "machine": machine("torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "mosaicml-streaming"),
    }


if __name__ == "__main__":
    main()
