"""The pretraining loop: from shards to a run folder (Gazda et al. 2021, section III B)."""

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Final

import numpy as np
import torch

from infra import config as configuration
from infra.devices import device_of
from infra.errors import RunFailed, require
from infra.log import progress, say
from infra.options import key, registered, setting
from infra.processes import Ranks, decoding_threads, on_first_rank, require_same, sum_over_ranks
from sharding.auditing.set_names import require_one_set_per_name
from sharding.reading.data_config import DataConfig
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import read_batch, sample_order
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.checkpoints.tensors import load_state
from ssl_core.engines import Engine, EngineSetup, build_engine
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.model.optimizer import learning_rate_at
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.failures import Diverged, out_of_memory, remedy
from ssl_core.pretraining.initial_weights import Start, initial_sha256, record_start, start_from
from ssl_core.pretraining.learning_step import LearningStep, learn
from ssl_core.pretraining.outputs import RunOutputs
from ssl_core.pretraining.resume import checkpoint_to_resume, fixed_settings, open_mirror
from ssl_core.pretraining.running_means import GpuWait, RunningMeans
from ssl_core.pretraining.sample_log import truncate_sample_log
from ssl_core.pretraining.session import Session, open_session
from ssl_core.views.batches import Batch, training_batches
from ssl_core.views.sheet import view_sheet
from ssl_core.views.spec import ViewSpec

_SHEET_SAMPLES: Final = 6  # on TensorBoard's sheet of views


@registered(PretrainConfig)  # so that errors name its options also outside of the command line
def pretrain(config: PretrainConfig, ranks: Ranks, *, learning_step: LearningStep = learn) -> None:
    """Start or resume the run in `config.run_folder`; call it on every rank.

    Args:
        config: the run
        ranks: this process among all
        learning_step: computes one step; tests and benchmarks wrap it

    Raises:
        UserError: if the configuration does not fit the data, the machine, or the run in that folder
        RunFailed: if data or training cannot continue
        KeyboardInterrupt: if Ctrl-C stopped this start; a checkpoint is saved
    """
    # Find problems of data and machine before writing anything.
    device = device_of(ranks, config.train.device, setting(config.train, "device"))
    shards = ShardSet(config.data.shards, config.data.splits, config.data.fraction_percent, config.data.fetch)
    order = sample_order(shards, config.data, config.seed)
    order.require_world(ranks.world)
    first_weights = initial_sha256(config)
    with open_session(config, ranks, device) as session:
        require_same(shards.identity, f"the content of {key(DataConfig, 'shards')}")
        require_same(first_weights, f"the content of {key(ModelConfig, 'init')}")
        on_first_rank(ranks, lambda: require_one_set_per_name(shards))
        mirror = open_mirror(config, shards.identity, ranks)
        failed_at, rollbacks = -1, 0
        while True:
            try:
                _train(config, session, shards, order, mirror, device, learning_step)
                break
            except torch.OutOfMemoryError as error:
                raise out_of_memory(config, ranks, session.step, error) from error
            except Diverged as error:
                # Training again from the checkpoint undoes a transient fault; a lasting one comes back.
                rollbacks = rollbacks + 1 if session.step <= failed_at else 1
                failed_at = max(failed_at, session.step)
                if rollbacks > config.train.rollbacks:
                    raise RunFailed(f"{error}, even after {setting(config.train, 'rollbacks')}; {remedy()}") from error
                if ranks.is_first:
                    say(f"warning: {error}; returning to the last checkpoint")
    if session.state == "preempted" and session.stop.name == "SIGINT":
        raise KeyboardInterrupt  # so that a shell does not go on to the next command


def _train(
    config: PretrainConfig,
    session: Session,
    shards: ShardSet,
    order: SampleOrder,
    mirror: Mirror | None,
    device: torch.device,
    learning_step: LearningStep,
) -> None:
    """Train from the newest checkpoint to the end of the run, to train.max_steps, or to a stop signal."""
    ranks, train = session.ranks, config.train
    total_steps = order.first_step_after_epoch(train.epochs - 1)
    last_step = min(total_steps, train.max_steps or total_steps)
    learning_rate_at(config.optim, 0, total_steps, config.data.global_batch)  # rejects a warm-up longer than the run
    engine, start = _build_engine(config, ranks, device)
    state = _resume(config, engine, shards, ranks, mirror)
    session.step = first_step = state.step
    require(
        first_step <= last_step,
        f"the run in {config.run_folder} is already at step {first_step}, beyond step {last_step} where "
        f"{key(train, 'epochs')} and {key(train, 'max_steps')} end it; raise them, or choose another run folder",
    )
    on_first_rank(ranks, lambda: _start_writing(config, session, start))

    with ExitStack() as stack:
        outputs = stack.enter_context(_open_outputs(config, first_step, ranks, engine, mirror))
        outputs.say(
            f"pretraining {config.model.backbone} on {shards.samples} samples, {train.epochs} epochs, "
            f"{ranks.world} x {device.type}: steps {first_step} to {last_step} in {config.run_folder}"
        )
        on_first_rank(ranks, lambda: _show_views(config, shards, order.batch(first_step), outputs))
        batches = training_batches(
            shards,
            order,
            config.views,
            seed=config.seed,
            first_step=first_step,
            rank=ranks.rank,
            world=ranks.world,
            local_world=ranks.local_world,
            view_executor=config.executor,
            device=device,
            threads=decoding_threads(ranks),
        )
        stack.enter_context(closing(batches))
        steps: Iterable[Batch] = islice(batches, last_step - first_step)
        if ranks.is_first:
            steps = progress(steps, "pretraining", total=last_step - first_step, unit="step")
        _Loop(config, session, shards, order, engine, outputs, learning_step).run(steps, state, last_step)

    if session.step < last_step:
        signal = session.stop.name or "a signal to another rank"
        session.finish("preempted", f"{signal} at step {session.step}; the same command resumes the run")
    else:
        done = session.step == total_steps
        session.finish("finished" if done else "paused", f"step {session.step} of {total_steps}")
    outputs.say(f"pretraining is at step {session.step} of {total_steps} in {config.run_folder}")


class _Loop:
    """The steps of one start: learn, agree with the other ranks, log and save."""

    def __init__(
        self,
        config: PretrainConfig,
        session: Session,
        shards: ShardSet,
        order: SampleOrder,
        engine: Engine,
        outputs: RunOutputs,
        learning_step: LearningStep,
    ) -> None:
        self._config, self._session, self._shards, self._order = config, session, shards, order
        self._engine, self._outputs, self._learning_step = engine, outputs, learning_step
        self._gpu_wait = GpuWait(engine.device)
        self._means = RunningMeans(config.data.global_batch, shards.stats())
        self._total_steps = order.first_step_after_epoch(config.train.epochs - 1)

    def run(self, batches: Iterable[Batch], state: CheckpointState, last_step: int) -> None:
        """Learn from `batches`, from `state` up to `last_step` or until any rank gets a stop signal.

        Raises:
            Diverged: after more than train.skips skipped steps in a row
            RunFailed: if too many samples are masked
        """
        train, session = self._config.train, self._session
        skipped_in_a_row = 0
        checkpoint_due = False
        for batch in self._gpu_wait.watch(batches):
            learning_rate, learned = self._learn(batch)

            # Synchronize before the next step.
            stops, masked = sum_over_ranks(session.stop.name is not None, int((~batch.valid).sum()))
            before, state = state, _advance(state, self._order, batch.step + 1, masked)
            session.step = state.step
            _require_few_masked(self._config.data, state, self._shards)
            skipped_in_a_row = 0 if learned else skipped_in_a_row + 1
            if skipped_in_a_row > train.skips:
                raise Diverged(
                    f"{skipped_in_a_row} steps in a row up to step {state.step} had no finite loss and gradient"
                )

            last = stops > 0 or state.step == last_step
            # A rollback may follow skipped steps, and must not find a checkpoint that lacks them.
            checkpoint_due = checkpoint_due or _checkpoint_due(train, before, state)
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
        global_batch = self._config.data.global_batch
        learning_rate = learning_rate_at(self._config.optim, batch.step, self._total_steps, global_batch)
        report = self._learning_step(self._engine, batch, learning_rate)
        self._means.add(report, batch.wait_s, time.perf_counter() - began_s)
        self._outputs.log_samples(batch)
        return learning_rate, report is not None

    def _write_metrics(self, state: CheckpointState, learning_rate: float, skipped: int) -> None:
        values = self._means.means(self._shards.stats(), self._gpu_wait.seconds())
        values |= {"data/samples_masked": state.samples_masked, "train/steps_skipped": skipped}
        self._outputs.write_metrics(state.step, {"epoch": state.epoch, "optim/learning_rate": learning_rate, **values})

    def _save(self, state: CheckpointState, *, last: bool) -> None:
        self._session.require_folder()
        save = self._outputs.save_last if last else self._outputs.save
        save(state, self._engine.model_state(), self._engine.optimizer_state())
        self._outputs.say(f"epoch {state.epoch:6.2f}  step {state.step:6d}  {self._means.summary}  checkpoint")


def require_equal_parts(config: PretrainConfig, world: int) -> None:
    """Raise UserError unless train.micro_batches cuts the share of each of `world` ranks into equal parts."""
    share, parts = config.data.global_batch // world, config.train.micro_batches
    require(
        share % parts == 0,
        f"{setting(config.train, 'micro_batches')} must divide a rank's share of {share} samples, so that batch norm "
        f"sees parts of equal size at every world size; try {math.gcd(share, parts)}, or another number of processes",
    )


def _build_engine(config: PretrainConfig, ranks: Ranks, device: torch.device) -> tuple[Engine, Start | None]:
    """Build the engine with the first weights; return where these come from, too, unless they are random."""
    require_equal_parts(config, ranks.world)
    setup = EngineSetup(
        config.engine,
        config.optim,
        config.loss,
        config.train.precision,
        device,
        micro_batches=config.train.micro_batches,
        global_batch=config.data.global_batch,
    )
    encoder = build_encoder(config.model, config.seed, config.views.size_px)
    start = start_from(config, encoder)
    return build_engine(setup, encoder), start


def _open_outputs(
    config: PretrainConfig, first_step: int, ranks: Ranks, engine: Engine, mirror: Mirror | None
) -> RunOutputs:
    model_bytes = sum(tensor.nbytes for tensor in engine.model_state().values())
    return RunOutputs(
        config.run_folder,
        first_step,
        ranks,
        engine.device,
        config.checkpoints,
        mirror,
        checkpoint_bytes=3 * model_bytes,  # the optimizers keep up to two numbers for each weight
        log_samples=config.train.log_samples,
    )


def _resume(
    config: PretrainConfig, engine: Engine, shards: ShardSet, ranks: Ranks, mirror: Mirror | None
) -> CheckpointState:
    """Load the newest whole checkpoint of the run, if any; return the position of the run."""
    checkpoint = checkpoint_to_resume(config, shards.identity, ranks, mirror)
    initial = CheckpointState(
        step=0,
        epoch=0.0,
        backbone=config.model.backbone,
        data_identity=shards.identity,
        pixel_mean=shards.pixel_mean,
        pixel_std=shards.pixel_std,
        world_size=ranks.world,
        sternum_version=version("sternum"),
        torch_version=torch.__version__,
        config=fixed_settings(config),
    )
    if checkpoint is None:
        return initial
    engine.load(*load_state(checkpoint))
    saved = checkpoint.state
    return replace(
        initial,
        step=saved.step,
        epoch=saved.epoch,
        samples_masked=saved.samples_masked,
        masked_in_epoch=saved.masked_in_epoch,
    )


def _advance(state: CheckpointState, order: SampleOrder, step: int, masked: int) -> CheckpointState:
    """Return the position after `step` steps, the last of which masked `masked` samples."""
    same_epoch = order.epoch_of(step - 1) == order.epoch_of(state.step - 1) if state.step else True
    return replace(
        state,
        step=step,
        epoch=round(step * order.global_batch / order.samples, 6),
        samples_masked=state.samples_masked + masked,
        masked_in_epoch=state.masked_in_epoch * same_epoch + masked,
    )


def _require_few_masked(data: DataConfig, state: CheckpointState, shards: ShardSet) -> None:
    allowed = int(data.max_masked_percent / 100 * shards.samples)
    if state.masked_in_epoch > allowed:
        raise RunFailed(
            f"{state.masked_in_epoch} samples of this epoch are damaged (up to step {state.step}), more than the "
            f"{allowed} that {setting(data, 'max_masked_percent')} allows; find them with sternum verify"
        )


def _checkpoint_due(train: TrainConfig, before: CheckpointState, now: CheckpointState) -> bool:
    every = train.checkpoint_every_epochs
    if int(now.epoch) // every > int(before.epoch) // every:
        return True
    return train.checkpoint_every_steps is not None and now.step % train.checkpoint_every_steps == 0


def _start_writing(config: PretrainConfig, session: Session, start: Start | None) -> None:
    """Write the configuration, and drop the logs of steps after the checkpoint, which will be made again."""
    if start and session.step == 0:
        record_start(config.run_folder, start)
    configuration.save(config, config.run_folder / "config.yaml")
    truncate_sample_log(config.run_folder, session.step)
    session.write_status()  # replaces the state of an earlier start, such as `failed`


def _show_views(config: PretrainConfig, shards: ShardSet, first: Positions, outputs: RunOutputs) -> None:
    """Show a few samples and their views in TensorBoard; warn if views will alias."""
    shown = Positions(*(values[:: max(1, len(values) // _SHEET_SAMPLES)][:_SHEET_SAMPLES] for values in first))
    batch = read_batch(shards, 0, shown, mask=True)
    outputs.show_image("views", view_sheet(batch, config.views, seed=config.seed, view_executor=config.executor))
    if warning := aliasing_warning(shards, config.views):
        say(warning)


def aliasing_warning(shards: ShardSet, spec: ViewSpec) -> str | None:
    """Return a warning if views, which are not antialiased, will alias; None if not."""
    rows = shards.index(0)
    shorter_side_px = int(np.median(np.minimum(rows["height"], rows["width"])))
    if shorter_side_px <= 2 * spec.size_px:
        return None
    return (
        f"warning: the images' shorter side is {shorter_side_px} px, more than twice {setting(spec, 'size_px')}, so "
        f"views show aliasing; pack with --shorter_side_px={spec.size_px * 3 // 2}"
    )
