"""The pretraining loop: shards in, a run folder out (Gazda et al. 2021, section III B)."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Final

import numpy as np
import torch

from infra import config as configuration
from infra.errors import RunFailed, require
from infra.log import progress, say
from infra.processes import Ranks, device_of, on_first_rank, require_same, sum_over_ranks
from sharding.reading.data_config import DataConfig
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import read_batch, sample_order
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import load_state
from ssl_core.engines import Engine, build_engine
from ssl_core.loss.ntxent import Identities, LossReport, NonFinite
from ssl_core.model.encoder import build_encoder
from ssl_core.model.optimizer import learning_rate_at
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.outputs import RunOutputs
from ssl_core.pretraining.resume import newest_checkpoint, what_computes
from ssl_core.pretraining.running_means import RunningMeans
from ssl_core.pretraining.sample_log import truncate_sample_log
from ssl_core.pretraining.session import Session, session
from ssl_core.views.batches import Batch, training_batches
from ssl_core.views.sheet import view_sheet

_SHOWN: Final = 6  # samples on TensorBoard's sheet of views
_CURE: Final = (
    "start again in a new run folder with a lower optim.learning_rate, engine.max_gradient_norm=1 or "
    "train.precision=fp32"
)


def pretrain(config: PretrainConfig, ranks: Ranks) -> None:
    """Pretrain, or go on with, the run in `config.run_folder`; the same call on every rank.

    Raises UserError for a configuration that does not fit the data, the machine or the run that is already there,
    and RunFailed when the data or the training cannot go on.
    """
    # What is wrong with data or machine shows before anything is written.
    device = device_of(ranks)
    shards = ShardSet(config.data.shards, config.data.splits, config.data.fraction_percent, config.data.fetch)
    order = sample_order(shards, config.data, config.seed)
    order.require_world(ranks.world)
    with session(config, ranks, device) as run:
        require_same(shards.identity, "the content of data.shards")
        failed_at, rollbacks = -1, 0
        while True:
            try:
                return _train(config, run, shards, order, device)
            except _Diverged as error:
                # What a passing fault has done, training again from the checkpoint undoes; a lasting one comes back.
                rollbacks = rollbacks + 1 if run.step <= failed_at else 1
                failed_at = max(failed_at, run.step)
                if rollbacks > config.train.rollbacks:
                    raise RunFailed(f"{error} again after train.rollbacks={config.train.rollbacks}; {_CURE}") from error
                if ranks.is_first:
                    say(f"warning: {error}; going back to the last checkpoint")


class _Diverged(Exception):
    """More steps in a row than allowed had no finite loss or gradient."""


def _train(config: PretrainConfig, run: Session, shards: ShardSet, order: SampleOrder, device: torch.device) -> None:
    """Train from the newest checkpoint on: to the end of the run, of what this start was asked for, or to a signal."""
    # What is learned, from where, and how far.
    ranks, train, global_batch = run.ranks, config.train, config.data.global_batch
    total_steps = order.first_step_after_epoch(train.epochs - 1)
    last_step = min(total_steps, train.max_steps or total_steps)
    learning_rate_at(config.optim, 0, total_steps, global_batch)  # a warm-up beyond the end shows now
    engine = _engine(config, ranks, device)
    state = _resume(config, engine, shards, ranks)
    run.step = first_step = state.step
    require(
        first_step <= last_step,
        f"the run in {config.run_folder} is at step {first_step} already, beyond step {last_step} where "
        "train.epochs and train.max_steps end it; raise them, or choose another run folder",
    )
    on_first_rank(ranks, lambda: _start_writing(config, run))

    with ExitStack() as stack:
        records = stack.enter_context(_records(config, first_step, ranks, engine))
        records.say(
            f"pretraining {config.model.backbone} on {shards.samples} samples, {train.epochs} epochs, "
            f"{ranks.world} x {device.type}: steps {first_step} to {last_step} in {config.run_folder}"
        )
        on_first_rank(ranks, lambda: _show_views(config, shards, order.batch(first_step), records))
        batches = training_batches(
            shards,
            order,
            config.views,
            seed=config.seed,
            first_step=first_step,
            rank=ranks.rank,
            world=ranks.world,
            local_world=ranks.local_world,
            kind=config.executor,
            device=device,
            threads=ranks.cpus,
        )
        stack.enter_context(closing(batches))
        recent = RunningMeans(global_batch, shards.stats())
        skipped = 0  # steps in a row
        due = False  # a checkpoint

        # The loop.
        for batch in _with_bar(islice(batches, last_step - first_step), last_step - first_step, ranks):
            began_s = time.perf_counter()
            rate = learning_rate_at(config.optim, batch.step, total_steps, global_batch)
            contrast = _learn(engine, batch, rate)
            recent.add(contrast, batch.wait_s, time.perf_counter() - began_s)
            records.consume(batch)

            # What all ranks have to know of each other before any goes on.
            stops, masked = sum_over_ranks(run.stop.name is not None, int((~batch.valid).sum()))
            before, state = state, _advance(state, order, batch.step + 1, masked)
            run.step = state.step
            _require_few_masked(config.data, state, shards)
            skipped = 0 if contrast else skipped + 1
            if skipped > train.skips:
                raise _Diverged(f"{skipped} steps in a row up to step {run.step} had no finite loss and gradient")

            last = stops > 0 or run.step == last_step
            # While steps are being left out, a rollback may come, and must not find a checkpoint that lacks them.
            due = due or _checkpoint_due(train, before, state)
            save = last or (due and not skipped)
            if save or run.step % train.log_every_steps == 0:
                values = recent.means(shards.stats())
                values |= {"data/samples_masked": state.samples_masked, "train/steps_skipped": skipped}
                records.write(run.step, {"epoch": state.epoch, "optim/learning_rate": rate, **values})
            if save:
                due = False
                (records.save_last if last else records.save)(state, engine.model_state(), engine.optimizer_state())
                records.say(f"epoch {state.epoch:6.2f}  step {run.step:6d}  {recent.summary}  checkpoint")
            if stops:
                break

    if run.step < last_step:
        run.ends(
            "preempted", f"{run.stop.name or 'a signal to another rank'} at step {run.step}; the same command goes on"
        )
    else:
        run.ends("finished" if run.step == total_steps else "paused", f"step {run.step} of {total_steps}")
    records.say(f"pretraining is at step {run.step} of {total_steps} in {config.run_folder}")


def _engine(config: PretrainConfig, ranks: Ranks, device: torch.device) -> Engine:
    """Return the engine with the untrained encoder."""
    share, parts = config.data.global_batch // ranks.world, config.train.micro_batches
    require(
        share % parts == 0,
        f"train.micro_batches={parts} must divide a rank's share of {share} samples, so that batch norm sees parts of "
        f"one size at every world size; try {math.gcd(share, parts)}, or another number of processes",
    )
    return build_engine(
        config.engine,
        build_encoder(config.model, config.seed),
        optim=config.optim,
        loss=config.loss,
        precision=config.train.precision,
        device=device,
        micro_batches=config.train.micro_batches,
        global_batch=config.data.global_batch,
    )


def _records(config: PretrainConfig, first_step: int, ranks: Ranks, engine: Engine) -> RunOutputs:
    model_bytes = sum(tensor.nbytes for tensor in engine.model_state().values())
    return RunOutputs(
        config.run_folder,
        first_step,
        ranks,
        engine.device,
        config.checkpoints,
        checkpoint_bytes=3 * model_bytes,  # the optimisers keep up to two numbers a weight
        log_samples=config.train.log_samples,
    )


def _learn(engine: Engine, batch: Batch, rate: float) -> LossReport | None:
    """Make one step; returns None, with nothing changed, when its loss or gradient is not finite, on all ranks."""
    whole = torch.from_numpy(batch.valid)
    views = batch.views
    if not whole.all():  # what was masked takes no part: not in the loss, not in batch norm
        views = [view[whole.to(view.device)] for view in views]
    rows = batch.rows[batch.valid]
    ids = (torch.from_numpy(rows[name].astype(np.int64)) for name in Identities._fields)
    try:
        contrast = engine.backward(views, Identities(*(values.to(engine.device) for values in ids)))
    except NonFinite:
        return None
    return contrast if engine.update(rate) else None


def _resume(config: PretrainConfig, engine: Engine, shards: ShardSet, ranks: Ranks) -> CheckpointState:
    """Load the newest whole checkpoint of the run, if it has one; returns where the run stands."""
    checkpoint = newest_checkpoint(config, shards.identity, ranks)
    begun = CheckpointState(
        step=0,
        epoch=0.0,
        backbone=config.model.backbone,
        data_identity=shards.identity,
        pixel_mean=shards.pixel_mean,
        pixel_std=shards.pixel_std,
        world_size=ranks.world,
        sternum_version=version("sternum"),
        torch_version=torch.__version__,
        config=what_computes(config),
    )
    if checkpoint is None:
        return begun
    engine.load(*load_state(checkpoint))
    reached = checkpoint.state
    return replace(
        begun,
        step=reached.step,
        epoch=reached.epoch,
        samples_masked=reached.samples_masked,
        masked_in_epoch=reached.masked_in_epoch,
    )


def _advance(state: CheckpointState, order: SampleOrder, step: int, masked: int) -> CheckpointState:
    """Return where the run stands after `step` steps, the last of which masked so many samples."""
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
            f"{state.masked_in_epoch} samples of this epoch were damaged by step {state.step}, more than the {allowed} "
            f"that data.max_masked_percent={data.max_masked_percent} allows; see which: sternum verify"
        )


def _checkpoint_due(train: TrainConfig, before: CheckpointState, now: CheckpointState) -> bool:
    every = train.checkpoint_every_epochs
    if int(now.epoch) // every > int(before.epoch) // every:
        return True
    return train.checkpoint_every_steps is not None and now.step % train.checkpoint_every_steps == 0


def _start_writing(config: PretrainConfig, run: Session) -> None:
    """Write the configuration, and drop from the logs what was done after the checkpoint that is gone on from."""
    configuration.save(config, config.run_folder / "config.yaml")
    truncate_sample_log(config.run_folder, run.step)
    run.write()  # what an earlier start has left, such as `failed`, is no longer so


def _show_views(config: PretrainConfig, shards: ShardSet, first: Positions, records: RunOutputs) -> None:
    """Put a few samples beside their views into TensorBoard; warn when views, which are not antialiased, will alias."""
    some = Positions(*(values[:: max(1, len(values) // _SHOWN)][:_SHOWN] for values in first))
    batch = read_batch(shards, 0, some, mask=True)
    sheet = view_sheet(batch, config.views, seed=config.seed, kind=config.executor)
    records.show("views", sheet)
    rows = shards.index(0)
    shorter_side_px = int(np.median(np.minimum(rows["height"], rows["width"])))
    if shorter_side_px > 2 * config.views.size_px:
        say(
            f"warning: the images' shorter side is {shorter_side_px} px, more than twice views.size_px="
            f"{config.views.size_px}, so views alias; pack with --shorter_side_px={config.views.size_px * 3 // 2}"
        )


def _with_bar(batches: Iterator[Batch], steps: int, ranks: Ranks) -> Iterator[Batch]:
    return progress(batches, "pretraining", total=steps, unit="step") if ranks.is_first else batches
