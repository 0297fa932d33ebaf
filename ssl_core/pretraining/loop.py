"""The steps of one start of a run."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from infra.configuration.options import setting
from infra.errors import RunFailed
from sharding.reading.data_config import DataConfig
from sharding.reading.order import SampleOrder
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.model.optimizer import learning_rate_at
from ssl_core.pretraining.failures import Diverged
from ssl_core.pretraining.learning_step import Learned, LearningStep, agree_on
from ssl_core.pretraining.monitor import Monitor
from ssl_core.pretraining.outputs import RunOutputs
from ssl_core.pretraining.run import Run
from ssl_core.views.batches import Batch


class _Queued(NamedTuple):
    """A step whose result the host has not asked for yet. batch: without views; closely: as in `Monitor.watching`."""

    batch: Batch
    learned: Learned
    learn_s: float
    closely: bool


class Loop:
    """The steps of one start: learn, agree with the other ranks, log and save.

    The host asks whether a step was skipped once it has queued the next one, so that a GPU always has work. Only before
    it logs or saves does it wait for the latest step.
    """

    def __init__(
        self, run: Run, engine: Engine, outputs: RunOutputs, monitor: Monitor, learning_step: LearningStep
    ) -> None:
        self._run, self._engine, self._outputs, self._learning_step = run, engine, outputs, learning_step
        self._monitor = monitor
        self._summary = ""  # of the latest line of metrics
        self._queued: deque[_Queued] = deque()
        self._skipped_in_a_row = 0

    def learn(self, batches: Iterable[Batch], state: CheckpointState) -> None:
        """Learn from `batches`, from `state` to the last step of this start or until any rank gets a stop signal.

        Raises:
            Diverged: after more than train.skips skipped steps in a row
            RunFailed: if too many samples are masked, or the projection head is dead
        """
        train, session = self._run.config.train, self._run.session
        checkpoint_due = False
        for batch in self._monitor.watch(batches):
            agreed, learning_rate = self._learn(batch)
            masked = self._run.config.data.global_batch - sum(agreed.samples)
            before, state = state, _advance(state, self._run, batch.step + 1, masked)
            session.step = state.step
            if before.size_px not in (None, state.size_px):
                self._outputs.say(f"step {before.step}: views have {state.size_px} px from here on")
            _require_few_masked(self._run.config.data, state, self._run.shards)

            last = agreed.stops > 0 or state.step == self._run.last_step
            checkpoint_due = checkpoint_due or self._checkpoint_due(state.step)
            logs = state.step % train.log_every_steps == 0
            self._read(leave=0 if last or checkpoint_due or logs else 1)
            # A rollback may follow skipped steps, and must not find a checkpoint that lacks them.
            save = last or (checkpoint_due and not self._skipped_in_a_row)
            if save or logs:
                self._write_metrics(state, learning_rate)
            if save:
                checkpoint_due = False
                self._save(state, last=last)
            if agreed.stops:
                break

    def _learn(self, batch: Batch) -> tuple[GlobalBatch, float]:
        """Queue one step; return what the ranks agreed on, and the learning rate."""
        began_s = time.perf_counter()
        config = self._run.config
        learning_rate = learning_rate_at(config.optim, batch.step, self._run.total_steps, config.data.global_batch)
        agreed = agree_on(batch, config.loss, stop=self._run.session.stop.name is not None)
        closely = self._line_due(batch.step + 1)  # such a step is read before another one is queued
        with self._monitor.watching(closely=closely):
            learned = self._learning_step(self._engine, batch, agreed, learning_rate)
        learn_s = time.perf_counter() - began_s
        self._queued.append(_Queued(replace(batch, views=[]), learned, learn_s, closely))
        self._outputs.log_samples(batch)
        return agreed, learning_rate

    def _checkpoint_due(self, step: int) -> bool:
        """Return whether the settings ask for a checkpoint after `step` steps."""
        train, order = self._run.config.train, self._run.order
        before, now = (int(_epochs(order, steps)) // train.checkpoint_every_epochs for steps in (step - 1, step))
        by_steps = train.checkpoint_every_steps
        return now > before or (by_steps is not None and step % by_steps == 0)

    def _line_due(self, step: int) -> bool:
        """Return whether a line of metrics will follow `step` steps; one that follows a signal is not foreseen."""
        is_regular = step % self._run.config.train.log_every_steps == 0
        return is_regular or step == self._run.last_step or self._checkpoint_due(step)

    def _read(self, leave: int) -> None:
        """Wait for the results of all queued steps but the last `leave`."""
        while len(self._queued) > leave:
            began_s = time.perf_counter()
            batch, (report, update), learn_s, closely = self._queued.popleft()
            learned = bool(update)
            learn_s += time.perf_counter() - began_s
            self._monitor.add(batch, report if learned else None, learn_s, closely=closely)
            self._skipped_in_a_row = 0 if learned else self._skipped_in_a_row + 1
            reason = "" if learned else update.why_not()
            if self._skipped_in_a_row > self._run.config.train.skips:
                raise Diverged(
                    f"{self._skipped_in_a_row} steps in a row up to step {batch.step + 1} ({reason}) had no finite "
                    "loss and gradient"
                )

    def _write_metrics(self, state: CheckpointState, learning_rate: float) -> None:
        line = self._monitor.line(state, learning_rate, self._skipped_in_a_row)
        self._outputs.write_metrics(state.step, line)
        self._summary = line.summary
        if line.alarm:
            self._outputs.say(f"warning: {line.alarm}")
            self._run.session.note_alarm(line.alarm)

    def _save(self, state: CheckpointState, *, last: bool) -> None:
        self._run.session.require_folder()
        save = self._outputs.save_last if last else self._outputs.save
        save(state, self._engine.model_state(), self._engine.optimizer_state())
        self._outputs.say(f"epoch {state.epoch:6.2f}  step {state.step:6d}  {self._summary}  checkpoint")


def _advance(state: CheckpointState, run: Run, step: int, masked: int) -> CheckpointState:
    """Return the position after `step` steps, the last of which masked `masked` samples."""
    order = run.order
    same_epoch = order.epoch_of(step - 1) == order.epoch_of(state.step - 1) if state.step else True
    return replace(
        state,
        step=step,
        epoch=_epochs(order, step),
        samples_masked=state.samples_masked + masked,
        masked_in_epoch=state.masked_in_epoch * same_epoch + masked,
        size_px=run.views_at(step - 1).size_px,
    )


def _epochs(order: SampleOrder, step: int) -> float:
    """Return how many epochs `step` steps make."""
    return round(step * order.global_batch / order.samples, 6)


def _require_few_masked(data: DataConfig, state: CheckpointState, shards: ShardSet) -> None:
    allowed = int(data.max_masked_percent / 100 * shards.samples)
    if state.masked_in_epoch > allowed:
        raise RunFailed(
            f"{state.masked_in_epoch} samples of this epoch are damaged (up to step {state.step}), more than the "
            f"{allowed} that {setting(data, 'max_masked_percent')} allows; find them with sternum verify"
        )
