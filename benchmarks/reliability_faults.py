"""Faults at random steps of short runs, in two processes that are forked with everything imported."""

import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from ssl_core.checkpoints.checkpoint import FILES, find_checkpoints
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.pretraining.config import PretrainConfig
from tests.support.disk_faults import cut, flip_a_bit, small_disk
from tests.support.faulty_training import (
    Fault,
    Outcome,
    assert_same_bits,
    assert_same_run,
    counter,
    read_outcome,
    save_event_numbers,
    small_config,
    start_ranks,
    total_steps,
    train_through,
    wait_for_ranks,
)

WORLD: Final = 2
_HANG_S: Final = 5.0  # train.timeout_s where a rank hangs
_SMALL_DISK_MB: Final = 800  # which the run's checkpoints fit


@dataclass(frozen=True)
class Row:
    """A fault, its injections and recoveries, and its cost.

    Attributes:
        fault: description.
        injected: number of injections.
        recovered: runs that ended with the samples, losses and weights of the undisturbed run (for a step left out:
            of a run in which all ranks met the fault).
        samples_lost_or_repeated: over all runs.
        steps_redone: steps begun again over all runs, including the step of the fault.
        seconds: how much longer a run took than the undisturbed one, median.
    """

    fault: str
    injected: int
    recovered: int
    samples_lost_or_repeated: int
    steps_redone: int
    seconds: float


class Ended(NamedTuple):
    """A finished run."""

    outcome: Outcome
    took_s: float
    redone: int


class FaultRuns:
    """Runs to inject faults into, and the undisturbed run to compare them with."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self._shards, self._folder = shards, folder
        self._runs = 0
        self.draw = random.Random(0)
        self.train()  # the fork server imports everything
        self.undisturbed = self.train()

    @property
    def steps(self) -> int:
        """The number of steps of a run."""
        return len(self.undisturbed.outcome.consumed)

    def train(
        self,
        *faults: Fault,
        between: Callable[[PretrainConfig], None] | None = None,
        first_world: int = WORLD,
        keep_last: int | None = None,
        small_disk_mb: int | None = None,
        **changes: Any,
    ) -> Ended:
        """Train to the end through these faults.

        Args:
            faults: the faults.
            between: called after the first start has ended.
            first_world: number of ranks of the first start.
            keep_last: number of checkpoints to keep; all if None.
            small_disk_mb: size of a separate file system for the run folder.
            changes: further settings of `TrainConfig`.
        """
        with ExitStack() as stack:
            config = self._config(keep_last, changes)
            if small_disk_mb:
                config.run_folder.mkdir()
                stack.enter_context(small_disk(config.run_folder, small_disk_mb))
            # Faults that never strike count how often their step was begun.
            steps = range(total_steps(config))
            counts = [Fault("kill", 0, step, times=0) for step in steps]
            began_s = time.perf_counter()
            if between:
                wait_for_ranks(start_ranks(config, first_world, [*counts, *faults]))
                between(config)
            train_through(config, WORLD, [*counts, *faults])
            took_s = time.perf_counter() - began_s
            begun = [counter(config.run_folder, fault, number).read_text() for number, fault in enumerate(counts)]
            ended = Ended(read_outcome(config.run_folder), took_s, sum(map(int, begun)) - len(steps))
        shutil.rmtree(config.run_folder)
        return ended

    def save_event_numbers(self, step: int) -> list[int]:
        """Return the disk events in the save of this step at which to kill, where one checkpoint is kept."""
        config = self._config(1, {})
        moments = save_event_numbers(config, WORLD, step)
        shutil.rmtree(config.run_folder)
        return moments

    def _config(self, keep_last: int | None, changes: dict[str, Any]) -> PretrainConfig:
        self._runs += 1
        config = small_config(self._folder / f"run-{self._runs}", self._shards, "resnet18", **changes)
        return replace(config, checkpoints=CheckpointConfig(keep_last=keep_last))

    def step(self) -> int:
        """Draw the step at which a fault strikes."""
        return self.draw.randrange(self.steps)

    def rank(self) -> int:
        """Draw the rank that it strikes."""
        return self.draw.randrange(WORLD)


def row(
    fault: str,
    ends: Sequence[Ended],
    expected: Ended,
    undisturbed_s: float,
    require: Callable[[Outcome, Outcome], None] = assert_same_bits,
) -> Row:
    """Compare runs with a fault with the run that they should equal."""
    return Row(
        fault,
        injected=len(ends),
        recovered=sum(holds(require, ended.outcome, expected.outcome) for ended in ends),
        samples_lost_or_repeated=sum(other_samples(ended.outcome, expected.outcome) for ended in ends),
        steps_redone=sum(ended.redone for ended in ends),
        seconds=statistics.median(ended.took_s for ended in ends) - undisturbed_s,
    )


def holds(require: Callable[[Outcome, Outcome], None], actual: Outcome, expected: Outcome) -> bool:
    """Return whether two runs are the same by `require`."""
    try:
        require(actual, expected)
    except AssertionError:
        return False
    return True


def other_samples(actual: Outcome, expected: Outcome) -> int:
    """Return how many samples were lost or repeated."""
    missing = abs(len(expected.consumed) - len(actual.consumed)) * len(expected.consumed[0].samples)
    pairs = zip(actual.consumed, expected.consumed, strict=False)
    return missing + sum(int((step.samples != expected_step.samples).sum()) for step, expected_step in pairs)


def measure_faults(shards: Path, folder: Path, times: int, kills: int) -> Iterator[Row]:
    """Yield a row for each fault."""
    runs = FaultRuns(shards, folder)
    every = small_config(folder, shards).train.checkpoint_every_steps
    assert every is not None

    undisturbed, undisturbed_s = runs.undisturbed, runs.undisturbed.took_s

    def many(fault: str, times: int, run: Callable[[], Ended], expected: Ended = undisturbed) -> Row:
        return row(fault, [run() for _ in range(times)], expected, undisturbed_s)

    def strike(kind: str, **changes: Any) -> Callable[[], Ended]:
        return lambda: runs.train(Fault(kind, runs.rank(), runs.step()), **changes)

    def harm(action: Callable[[Path], None]) -> Callable[[], Ended]:
        def damage(config: PretrainConfig) -> None:
            newest = find_checkpoints(config.run_folder)[-1]
            action(newest.path / runs.draw.choice(FILES))

        steps = range(3 * every, runs.steps)  # so that there are two: the third save awaits the second
        return lambda: runs.train(Fault("kill", 0, runs.draw.choice(steps)), between=damage)

    def three_kills() -> Ended:
        return runs.train(*(Fault("kill", runs.rank(), runs.step()) for _ in range(3)))

    def lasting() -> Ended:
        rank, step = runs.rank(), runs.draw.randrange(runs.steps - 1)
        return runs.train(Fault("nan", rank, step), Fault("nan", rank, step + 1), skips=1)

    def full() -> Ended:
        begin = runs.draw.randrange(runs.steps - 3)
        return runs.train(Fault("fill", 0, begin), Fault("free", 0, runs.steps - 1), small_disk_mb=_SMALL_DISK_MB)

    def fewer() -> Ended:
        lost = Fault("kill", runs.draw.randrange(4), runs.step())
        return runs.train(lost, first_world=4, between=lambda _: None)

    if kills:
        yield many("three ranks killed (kill -9), one after the other", kills, three_kills)
    if not times:
        return
    yield many("a rank killed (kill -9)", times, strike("kill"))
    step = 2 * every
    saves = [runs.train(Fault("save", 0, step, event=at), keep_last=1) for at in runs.save_event_numbers(step)]
    yield row("kill -9 at each disk operation of a save", saves, undisturbed, undisturbed_s)
    yield many(f"a rank hangs (SIGSTOP; timeout {_HANG_S:g} s)", times, strike("stop", timeout_s=_HANG_S))
    yield many("a rank raises", times, strike("raise", timeout_s=_HANG_S))
    yield many("preemption: SIGTERM to one rank", times, strike("term"))
    both = runs.train(*(Fault("nan", rank, 7) for rank in range(WORLD)))
    yield many("NaN on one rank: left out on all", times, lambda: runs.train(Fault("nan", runs.rank(), 7)), both)
    yield many("NaN on one rank, lasting: rolled back", times, lasting)
    yield many("newest checkpoint: a bit flipped", times, harm(flip_a_bit))
    yield many("newest checkpoint: a file cut in half", times, harm(cut))
    yield many("newest checkpoint: a file missing", times, harm(Path.unlink))
    yield many("no space left on the disk, for a while", times, full)
    shrunk = [fewer() for _ in range(times)]
    yield row(
        "one of 4 ranks lost for good: continued with 2 *",
        shrunk,
        runs.undisturbed,
        runs.undisturbed.took_s,
        assert_same_run,
    )
