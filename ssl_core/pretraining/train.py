"""A pretraining run: its starts, from shards to a run folder (Gazda et al. 2021, section III B)."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Final

import torch

from infra.configuration import config as configuration
from infra.configuration.options import key, registered, setting
from infra.errors import RunFailed
from infra.log import progress, say
from infra.monitoring.hardware import hardware_of, record_hardware
from infra.ranks.devices import device_of
from infra.ranks.processes import Ranks, decoding_threads, on_first_rank, require_same
from infra.words import counted
from sharding.auditing.set_names import require_one_set_per_name
from sharding.reading.data_config import DataConfig
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import NO_SIBLINGS
from sharding.reading.stream import read_batch, sample_order
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState
from ssl_core.checkpoints.tensors import load_state
from ssl_core.engines import Engine, EngineSetup, build_engine
from ssl_core.model.encoder import Encoder, ModelConfig, build_encoder
from ssl_core.model.optimizer import learning_rate_at
from ssl_core.pretraining.checks import (
    aliasing_warning,
    require_all_sizes,
    require_equal_parts,
    require_graphs_possible,
)
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.failures import Diverged, out_of_memory, remedy
from ssl_core.pretraining.flops import training_flop
from ssl_core.pretraining.initial_weights import Start, initial_sha256, record_start, start_from
from ssl_core.pretraining.learning_step import LearningStep, learn
from ssl_core.pretraining.loop import Loop
from ssl_core.pretraining.monitor import Monitor
from ssl_core.pretraining.outputs import RunOutputs
from ssl_core.pretraining.resume import checkpoint_to_resume, fixed_settings, open_mirror, settled
from ssl_core.pretraining.run import Run
from ssl_core.pretraining.sample_log import truncate_sample_log
from ssl_core.pretraining.session import open_session
from ssl_core.views.batches import Batch, training_batches
from ssl_core.views.second_images import siblings_of
from ssl_core.views.sheet import view_sheet

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
    require_graphs_possible(config, device, ranks.world)
    shards = ShardSet(config.data.shards, config.data.splits, config.data.fraction_percent, config.data.fetch)
    order = sample_order(shards, config.data, config.seed)
    order.require_world(ranks.world)
    siblings = siblings_of(config.views, shards, config.seed)
    first_weights = initial_sha256(config)
    with open_session(config, ranks, device) as session:
        require_same(shards.identity, f"the content of {key(DataConfig, 'shards')}")
        require_same(first_weights, f"the content of {key(ModelConfig, 'init')}")
        on_first_rank(ranks, lambda: require_one_set_per_name(shards))
        on_first_rank(ranks, config.log.require_installed)
        mirror = open_mirror(config, shards.identity, ranks)
        _train_with_rollbacks(Run(config, session, shards, order, siblings, mirror, device), learning_step)
    if session.state == "preempted" and session.stop.name == "SIGINT":
        raise KeyboardInterrupt  # so that a shell does not go on to the next command


def _train_with_rollbacks(run: Run, learning_step: LearningStep) -> None:
    """Train; return to the last checkpoint after too many skipped steps, which undoes a fault that has passed.

    Raises:
        RunFailed: if the fault comes back, or the GPU has no memory left
    """
    session, allowed = run.session, run.config.train.rollbacks
    failed_at, rollbacks = -1, 0
    while True:
        try:
            return _train(run, learning_step)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(run.config, run.ranks, session.step, error) from error
        except Diverged as error:
            rollbacks = rollbacks + 1 if session.step <= failed_at else 1
            failed_at = max(failed_at, session.step)
            if rollbacks > allowed:
                raise RunFailed(f"{error}, even after {setting(run.config.train, 'rollbacks')}; {remedy()}") from error
            if run.ranks.is_first:
                say(f"warning: {error}; returning to the last checkpoint")


def _train(run: Run, learning_step: LearningStep) -> None:
    """Train from the newest checkpoint to the last step of this start, or to a stop signal."""
    checkpoint = checkpoint_to_resume(run.config, run.shards.identity, run.ranks, run.mirror)
    run = _settled(run, checkpoint)
    config, session = run.config, run.session
    learning_rate_at(config.optim, 0, run.total_steps, config.data.global_batch)  # rejects a warm-up beyond the run
    encoder, start = _first_encoder(run)
    flop = {spec.size_px: training_flop(encoder, spec) for spec in config.views_of_stages() if run.ranks.is_first}
    engine = _build_engine(run, encoder)
    state = _resume(run, engine, start, checkpoint)
    session.step = state.step
    run.require_steps_left(state.step)
    on_first_rank(run.ranks, lambda: _start_writing(run, start))
    with _open_outputs(run, engine) as outputs:
        outputs.say(
            f"pretraining {config.model.backbone} on {run.shards.samples} samples, "
            f"{counted(config.train.epochs, 'epoch')}, {run.ranks.world} x {run.device.type} in "
            f"{config.train.precision}: "
            f"steps {state.step} to {run.last_step} in {config.run_folder}"
        )
        on_first_rank(run.ranks, lambda: _show_views(run, outputs))
        with closing(_batches(run)) as batches:
            left = run.last_step - state.step
            steps = islice(batches, left)
            shown = progress(steps, "pretraining", total=left, unit="step") if run.ranks.is_first else steps
            Loop(run, engine, outputs, Monitor(run, engine, flop), learning_step).learn(shown, state)
    _finish(run)
    outputs.say(f"pretraining is at step {session.step} of {run.total_steps} in {config.run_folder}")


def _settled(run: Run, checkpoint: Checkpoint | None) -> Run:
    config = settled(run.config, run.device, checkpoint)
    require_same(config.train.precision, f"the precision of {setting(run.config.train, 'precision')}")
    return replace(run, config=config)


def _first_encoder(run: Run) -> tuple[Encoder, Start | None]:
    """Build the encoder with the first weights; return where these come from, too, unless they are random."""
    config = run.config
    require_equal_parts(config, run.ranks.world)
    encoder = build_encoder(config.model, config.seed, config.views.size_px)
    require_all_sizes(config, encoder)
    return encoder, start_from(config, encoder)


def _build_engine(run: Run, encoder: Encoder) -> Engine:
    config = run.config
    setup = EngineSetup(
        config.engine,
        config.optim,
        config.loss,
        config.train.settled_precision,
        run.device,
        micro_batches=config.train.micro_batches,
        global_batch=config.data.global_batch,
    )
    return build_engine(setup, encoder)


def _resume(run: Run, engine: Engine, start: Start | None, checkpoint: Checkpoint | None) -> CheckpointState:
    """Load the checkpoint, if there is one; return the position of the run."""
    initial = CheckpointState(
        step=0,
        epoch=0.0,
        backbone=run.config.model.backbone,
        data_identity=run.shards.identity,
        pixel_mean=run.shards.pixel_mean,
        pixel_std=run.shards.pixel_std,
        world_size=run.ranks.world,
        sternum_version=version("sternum"),
        torch_version=torch.__version__,
        config=fixed_settings(run.config),
        shards=[str(location) for location in run.config.data.shards],
        ancestors=start.ancestors if start else [],
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
        ancestors=saved.ancestors or initial.ancestors,  # what they were when the run began
    )


def _start_writing(run: Run, start: Start | None) -> None:
    """Write configuration and hardware, and drop the logs of steps after the checkpoint, which will be made again."""
    folder, step = run.config.run_folder, run.session.step
    if start and step == 0:
        record_start(folder, start)
    configuration.save(run.config, folder / "config.yaml")
    record_hardware(folder, hardware_of(run.ranks, run.device, step))
    truncate_sample_log(folder, step)
    run.session.write_status()  # replaces the state of an earlier start, such as `failed`


def _open_outputs(run: Run, engine: Engine) -> RunOutputs:
    model_bytes = sum(tensor.nbytes for tensor in engine.model_state().values())
    return RunOutputs(
        run.config,
        run.session.step,
        run.ranks,
        engine.device,
        run.mirror,
        checkpoint_bytes=3 * model_bytes,  # the optimizers keep up to two numbers for each weight
    )


def _show_views(run: Run, outputs: RunOutputs) -> None:
    """Show a few samples and their views in TensorBoard; warn if views will alias."""
    config, step = run.config, run.session.step
    first, spec = run.order.batch(step), run.views_at(step)
    shown = Positions(*(values[:: max(1, len(values) // _SHEET_SAMPLES)][:_SHEET_SAMPLES] for values in first))
    siblings = run.siblings.draw(shown) if run.siblings else NO_SIBLINGS
    batch = read_batch(run.shards, 0, shown, siblings, mask=True)
    outputs.show_image("views", view_sheet(batch, spec, seed=config.seed, view_executor=config.executor))
    if warning := aliasing_warning(run.shards, config):
        say(warning)


def _batches(run: Run) -> Generator[Batch, None, None]:
    """Yield this rank's views of every step from the position of the run on."""
    return training_batches(
        run.shards,
        run.order,
        run.config.views,
        seed=run.config.seed,
        stages=run.early_stages,
        first_step=run.session.step,
        rank=run.ranks.rank,
        world=run.ranks.world,
        local_world=run.ranks.local_world,
        siblings=run.siblings,
        view_executor=run.config.executor,
        device=run.device,
        threads=decoding_threads(run.ranks),
    )


def _finish(run: Run) -> None:
    """Note how this start ended, for `status.json`."""
    session = run.session
    if session.step < run.last_step:
        signal = session.stop.name or "a signal to another rank"
        session.finish("preempted", f"{signal} at step {session.step}; the same command resumes the run")
    else:
        done = session.step == run.total_steps
        session.finish("finished" if done else "paused", f"step {session.step} of {run.total_steps}")
