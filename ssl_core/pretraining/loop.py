"""The steps of one start of a run."""

import time
from collections.abc import Iterable
from dataclasses import replace

from infra.errors import RunFailed
from infra.options import setting
from infra.processes import sum_over_ranks
from sharding.reading.data_config import DataConfig
from sharding.reading.order import SampleOrder
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.engines import Engine
from ssl_core.model.optimizer import learning_rate_at
from ssl_core.pretraining.failures import Diverged
from ssl_core.pretraining.learning_step import LearningStep
from ssl_core.pretraining.monitor import Monitor
from ssl_core.pretraining.outputs import RunOutputs
from ssl_core.pretraining.run import Run
from ssl_core.views.batches import Batch


class Loop:
    """The steps of one start: learn, agree with the other ranks, log and save."""

    def __init__(
        self, run: Run, engine: Engine, outputs: RunOutputs, monitor: Monitor, learning_step: LearningStep
    ) -> None:
        self._run, self._engine, self._outputs, self._learning_step = run, engine, outputs, learning_step
        self._monitor = monitor
        self._summary = ""  # of the latest line of metrics

    def learn(self, batches: Iterable[Batch], state: CheckpointState) -> None:
        """Learn from `batches`, from `state` to the last step of this start or until any rank gets a stop signal.

        Raises:
            Diverged: after more than train.skips skipped steps in a row
            RunFailed: if too many samples are masked
        """
        train, session = self._run.config.train, self._run.session
        skipped_in_a_row = 0
        checkpoint_due = False
        for batch in self._monitor.watch(batches):
            learning_rate, learned = self._learn(batch)

            # Synchronize before the next step.
            stops, masked = sum_over_ranks(session.stop.name is not None, int((~batch.valid).sum()))
            before, state = state, _advance(state, self._run, batch.step + 1, masked)
            session.step = state.step
            if before.size_px not in (None, state.size_px):
                self._outputs.say(f"step {before.step}: views have {state.size_px} px from here on")
            _require_few_masked(self._run.config.data, state, self._run.shards)
            skipped_in_a_row = 0 if learned else skipped_in_a_row + 1
            if skipped_in_a_row > train.skips:
                raise Diverged(
                    f"{skipped_in_a_row} steps in a row up to step {state.step} had no finite loss and gradient"
                )

            last = stops > 0 or state.step == self._run.last_step
            # A rollback may follow skipped steps, and must not find a checkpoint that lacks them.
            checkpoint_due = checkpoint_due or self._checkpoint_due(state.step)
            save = last or (checkpoint_due and not skipped_in_a_row)
            if save or state.step % train.log_every_steps == 0:
                self._write_metrics(state, learning_rate, skipped_in_a_row)
            if save:
                checkpoint_due = False
                self._save(state, last=last)
            if stops:
                break

    def _learn(self, batch: Batch) -> tuple[float, bool]:
        """Make one step; return its learning rate, and whether anything was learned."""
        began_s = time.perf_counter()
        config = self._run.config
        learning_rate = learning_rate_at(config.optim, batch.step, self._run.total_steps, config.data.global_batch)
        closely = self._line_due(batch.step + 1)
        with self._monitor.watching(closely=closely):
            report = self._learning_step(self._engine, batch, learning_rate)
        self._monitor.add(batch, report, time.perf_counter() - began_s, closely=closely)
        self._outputs.log_samples(batch)
        return learning_rate, report is not None

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

    def _write_metrics(self, state: CheckpointState, learning_rate: float, skipped: int) -> None:
        line = self._monitor.line(state, learning_rate, skipped)
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
