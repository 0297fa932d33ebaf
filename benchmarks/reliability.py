"""Faults injected into real runs on this machine, and what they cost.

ratio   effective-training-time ratio: ResNet-18 by `sternum supervise -- torchrun` in two processes, of which, torchrun
        among them, a random one is killed once in a while; the time of the steps that count, that is their number
        times the median of what one takes, as a share of all time from the first start to the stop
faults  each fault many times, at random steps of a short run in two processes: whether the run then ends as the
        undisturbed one, and at what price. Processes are forked with everything imported, so that a start takes next to
        no time; what it takes in earnest, `ratio` has

The figures go to --out as JSON, the tables beside it as Markdown.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from common import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))  # the tests' means of injecting

from harness import Fault, Outcome, assert_same_bits, end, outcome, small, start, steps_done, total_steps, train_through
from launched import Launched, launched, supervised, torchrun

from infra.errors import RunFailed
from infra.files import write_atomic
from infra.metrics import read_metrics
from sharding.datasets.simulated import write_cell, write_chexpert
from sharding.pack import PackConfig, pack
from sharding.stream import ShardSet, sample_order
from ssl_core.checkpoint import FILES, find_checkpoints
from ssl_core.checkpoint_writer import CheckpointConfig
from ssl_core.consumed import read_consumed
from ssl_core.model import ModelConfig
from ssl_core.train import PretrainConfig
from ssl_core.views.spec import ViewSpec

SECTIONS: Final = ("ratio", "faults")
WORLD: Final = 2
_POLL_S: Final = 0.1
_HANG_S: Final = 5.0  # train.timeout_s where a rank hangs


@dataclass(frozen=True)
class Ratio:
    """What the run under fire came to. step_s, back_s: medians of a step, and from a kill to the next step's end."""

    effective_share: float
    wall_s: float
    step_s: float
    steps: int
    steps_redone: int
    kills: int
    back_s: float
    samples_lost_or_repeated: int


class Step(NamedTuple):
    """A step that was done, whether it counts in the end or not."""

    number: int
    ended_s: float
    took_s: float


def measure_ratio(shards: Path, folder: Path, asked: argparse.Namespace) -> Ratio:
    """Train under fire for so long, then stop the run as a scheduler does."""
    config = small(folder / "run", shards, epochs=10**6, checkpoint_every_epochs=10**6, precision="bf16")
    config = replace(
        config,
        data=replace(config.data, global_batch=asked.global_batch),
        views=ViewSpec(size_px=asked.size_px),
        model=ModelConfig("resnet18"),
        train=replace(config.train, checkpoint_every_steps=asked.checkpoint_every_steps),
        checkpoints=CheckpointConfig(keep_last=2),
    )
    command = supervised(config, torchrun(config, "--max-restarts=3"), "--patience=1000")
    began_s = time.time()
    with launched(command, folder / "log") as run:
        seen, killed_s = fire(run, config, began_s, asked)
        os.kill(run.process.pid, signal.SIGTERM)
        run.end()
    wall_s = time.time() - began_s
    seen |= steps_of(config)
    counting = steps_done(config.run_folder)
    step_s = statistics.median(step.took_s for step in seen) if seen else 0.0
    back_s = [min((step.ended_s for step in seen if step.ended_s > kill_s), default=math.inf) for kill_s in killed_s]
    back_s = [end_s - kill_s for end_s, kill_s in zip(back_s, killed_s, strict=True) if end_s < math.inf]
    return Ratio(
        effective_share=counting * step_s / wall_s,
        wall_s=wall_s,
        step_s=step_s,
        steps=counting,
        steps_redone=len(seen) - counting,
        kills=len(killed_s),
        back_s=statistics.median(back_s) if back_s else 0.0,
        samples_lost_or_repeated=misplaced(config),
    )


def fire(
    run: Launched, config: PretrainConfig, began_s: float, asked: argparse.Namespace
) -> tuple[set[Step], list[float]]:
    """Kill a process at a random moment of every period; returns the steps that were seen, and when it killed."""
    draw = random.Random(asked.seed)
    seen: set[Step] = set()
    killed_s: list[float] = []
    periods = range(int(asked.ratio_s / asked.kill_every_s))
    moments_s = [began_s + (period + draw.random()) * asked.kill_every_s for period in periods]
    while time.time() < began_s + asked.ratio_s:
        if run.process.poll() is not None:
            raise RunFailed(f"the run ended by itself: {run.said()[-2000:]}")
        seen |= steps_of(config)
        if len(killed_s) < len(moments_s) and time.time() >= moments_s[len(killed_s)]:
            targets = [process for process in run.all("launch.pretrain") if process.pid != run.process.pid]
            if targets:  # there are none for a moment between two starts
                draw.choice(targets).kill()
                killed_s.append(time.time())
        time.sleep(_POLL_S)
    return seen, killed_s


def steps_of(config: PretrainConfig) -> set[Step]:
    """Return the steps that stand in the run's metrics now, which has a line for each."""
    images = config.data.global_batch
    lines = read_metrics(config.run_folder)
    return {Step(int(line["step"]), line["time_s"], images / line["speed/images_per_s"]) for line in lines}


def misplaced(config: PretrainConfig) -> int:
    """Return how many samples that the run consumed are others than the order has there."""
    shards = ShardSet(config.data.shards)
    order = sample_order(shards, config.data, config.seed)
    wrong = 0
    for number, step in enumerate(read_consumed(config.run_folder)):
        places = order.batch(number)
        wanted = [shards.index(int(shard))["sample"][row] for shard, row in zip(places.shard, places.row, strict=True)]
        wrong += int((step.samples != np.array(wanted)).sum())
    return wrong


@dataclass(frozen=True)
class Row:
    """A fault: how often it was injected and survived, and its price over all times.

    recovered: runs that ended in the samples, losses and weights of the undisturbed one (for a step left out: of a run
    in which all ranks met the fault). steps_redone: those begun again, the one that was hit included. seconds: what a
    run took longer than the undisturbed one, median.
    """

    fault: str
    injected: int
    recovered: int
    samples_lost_or_repeated: int
    steps_redone: int
    seconds: float


class Ended(NamedTuple):
    """A run that was finished."""

    outcome: Outcome
    took_s: float
    redone: int


class Range:
    """Where faults are injected: shards and a folder, and the undisturbed run to compare with."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self._shards, self._folder = shards, folder
        self._runs = 0
        self.draw = random.Random(0)
        self.train()  # the fork server imports everything
        self.undisturbed = self.train()

    @property
    def steps(self) -> int:
        """How many steps a run has."""
        return len(self.undisturbed.outcome.consumed)

    def train(self, *faults: Fault, between: Callable[[PretrainConfig], None] | None = None, **changes: Any) -> Ended:
        """Train to the end, through these faults; `between`: what to do when the first start has ended."""
        self._runs += 1
        config = small(self._folder / f"run-{self._runs}", self._shards, **changes)
        # Faults that never strike: what is left of them is a count of how often their step was begun.
        steps = range(total_steps(config))
        counts = [Fault("kill", 0, step, times=0) for step in steps]
        began_s = time.perf_counter()
        if between:
            end(start(config, WORLD, [*counts, *faults]))
            between(config)
        train_through(config, WORLD, [*counts, *faults])
        took_s = time.perf_counter() - began_s
        begun = [config.run_folder.with_name(f"{config.run_folder.name}-fault-0-{step}").read_text() for step in steps]
        ended = Ended(outcome(config.run_folder), took_s, sum(map(int, begun)) - len(steps))
        shutil.rmtree(config.run_folder)
        return ended

    def step(self) -> int:
        """Draw the step at which a fault strikes."""
        return self.draw.randrange(self.steps)

    def rank(self) -> int:
        """Draw the rank that it strikes."""
        return self.draw.randrange(WORLD)

    def row(self, fault: str, times: int, run: Callable[[], Ended], expected: Ended | None = None) -> Row:
        """Inject a fault so many times."""
        wanted = expected or self.undisturbed
        ends = [run() for _ in range(times)]
        return Row(
            fault,
            injected=times,
            recovered=sum(is_same(ended.outcome, wanted.outcome) for ended in ends),
            samples_lost_or_repeated=sum(other_samples(ended.outcome, wanted.outcome) for ended in ends),
            steps_redone=sum(ended.redone for ended in ends),
            seconds=statistics.median(ended.took_s for ended in ends) - self.undisturbed.took_s,
        )


def is_same(found: Outcome, expected: Outcome) -> bool:
    """Say whether samples, losses and weights are the same, bit for bit."""
    try:
        assert_same_bits(found, expected)
    except AssertionError:
        return False
    return True


def other_samples(found: Outcome, expected: Outcome) -> int:
    """Return how many samples were lost or repeated."""
    missing = abs(len(expected.consumed) - len(found.consumed)) * len(expected.consumed[0].samples)
    pairs = zip(found.consumed, expected.consumed, strict=False)
    return missing + sum(int((one.samples != other.samples).sum()) for one, other in pairs)


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def halve(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def measure_faults(shards: Path, folder: Path, times: int, kills: int) -> Iterator[Row]:
    """Yield a row for each fault."""
    place = Range(shards, folder)
    every = small(folder, shards).train.checkpoint_every_steps
    assert every is not None

    def strike(kind: str, **changes: Any) -> Callable[[], Ended]:
        return lambda: place.train(Fault(kind, place.rank(), place.step()), **changes)

    def harm(action: Callable[[Path], None]) -> Callable[[], Ended]:
        def damage(config: PretrainConfig) -> None:
            newest = find_checkpoints(config.run_folder)[-1]
            action(newest.path / place.draw.choice(FILES))

        steps = range(2 * every, place.steps)  # so that there is one to damage: the second save awaits the first
        return lambda: place.train(Fault("kill", 0, place.draw.choice(steps)), between=damage)

    def three_kills() -> Ended:
        return place.train(*(Fault("kill", place.rank(), place.step()) for _ in range(3)))

    def lasting() -> Ended:
        rank, step = place.rank(), place.draw.randrange(place.steps - 1)
        return place.train(Fault("nan", rank, step), Fault("nan", rank, step + 1), skips=1)

    if kills:
        yield place.row("three ranks killed (kill -9), one after the other", kills, three_kills)
    if not times:
        return
    yield place.row("a rank killed (kill -9)", times, strike("kill"))
    yield place.row(f"a rank hangs (SIGSTOP; timeout {_HANG_S:g} s)", times, strike("stop", timeout_s=_HANG_S))
    yield place.row("a rank raises", times, strike("raise", timeout_s=_HANG_S))
    yield place.row("preemption: SIGTERM to one rank", times, strike("term"))
    both = place.train(*(Fault("nan", rank, 7) for rank in range(WORLD)))
    yield place.row("NaN on one rank: left out on all", times, lambda: place.train(Fault("nan", place.rank(), 7)), both)
    yield place.row("NaN on one rank, lasting: rolled back", times, lasting)
    yield place.row("newest checkpoint: a bit flipped", times, harm(flip_a_bit))
    yield place.row("newest checkpoint: a file cut in half", times, harm(halve))
    yield place.row("newest checkpoint: a file missing", times, harm(Path.unlink))


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


def main() -> None:
    """Make the images, inject, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures; a .md beside it")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--ratio_s", type=float, default=600.0, help="how long to train under fire")
    parser.add_argument("--kill_every_s", type=float, default=60.0, help="one kill in each such period")
    parser.add_argument("--checkpoint_every_steps", type=int, default=10, help="under fire")
    parser.add_argument("--global_batch", type=int, default=64, help="under fire")
    parser.add_argument("--size_px", type=int, default=96, help="of a view, under fire")
    parser.add_argument("--kills", type=int, default=20, help="runs with three random kills each")
    parser.add_argument("--times", type=int, default=5, help="injections of every other fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and targets under fire")
    asked = parser.parse_args()
    ratio: Ratio | None = None
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sternum-reliability-") as name:
        folder = Path(name)
        if "ratio" in asked.sections:
            write_cell(folder / "cell", {"train": 512}, seed=0, size_px=160)
            pack(PackConfig("cell", folder / "cell", folder / "shards", 128))
            (folder / "ratio").mkdir()
            ratio = measure_ratio(folder / "shards", folder / "ratio", asked)
            print(markdown(ratio, []), flush=True)
        if "faults" in asked.sections:
            write_chexpert(folder / "small", patients=40, seed=0, size_px=64)
            pack(PackConfig("chexpert", folder / "small", folder / "small-shards", shorter_side_px=64))
            (folder / "faults").mkdir()
            for row in measure_faults(folder / "small-shards", folder / "faults", asked.times, asked.kills):
                print(row, flush=True)
                rows.append(row)
    print(markdown(ratio, rows))
    write_atomic(asked.out.with_suffix(".md"), markdown(ratio, rows))
    write_atomic(asked.out, json.dumps(as_json(ratio, rows, asked), indent=1) + "\n")


def as_json(ratio: Ratio | None, rows: list[Row], asked: argparse.Namespace) -> dict[str, Any]:
    """Return what the file holds: units, figures, options, machine."""
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
        "options": {name: value for name, value in vars(asked).items() if name != "out"},
        "machine": machine("torch"),
    }


if __name__ == "__main__":
    main()
