"""The pretraining loop: shards in, a run folder out (Gazda et al. 2021, section III B)."""

import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from infra import config as configuration
from infra.errors import RunFailed, UserError, require
from infra.files import locked
from infra.log import progress, say
from infra.metrics import MetricsWriter
from infra.processes import Ranks, device_of, on_first_rank, process_group, require_same
from sharding.stream import DataConfig, ShardSet, sample_order
from ssl_core.batches import Batch, training_batches
from ssl_core.checkpoint import (
    CheckpointState,
    find_checkpoints,
    load_state,
    newest_whole_checkpoint,
    save_checkpoint,
)
from ssl_core.engines.ddp import DDPEngine, Precision
from ssl_core.loss.ntxent import Contrast
from ssl_core.model import ModelConfig, build_encoder
from ssl_core.optim import OptimConfig, learning_rate_at
from ssl_core.views.spec import ViewSpec


@dataclass(frozen=True)
class LossConfig:
    """NT-Xent.

    Args:
        temperature: tau of equation 4; the paper's is 0.5
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"loss.temperature={self.temperature} must be positive; the paper uses 0.5")


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run and what it leaves behind.

    Args:
        epochs: passes over the selected samples; the paper's is 100
        precision: bf16 (autocast; weights, batch statistics and loss stay fp32) or fp32
        checkpoint_every_epochs: a checkpoint at the end of every so many epochs, and of the run
        log_every_steps: steps between two lines of metrics, which are means over these steps
        max_steps: stop for now after this many steps in all, with a checkpoint; the next start goes on
    """

    epochs: int = 100
    precision: Precision = "bf16"
    checkpoint_every_epochs: int = 1
    log_every_steps: int = 10
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "checkpoint_every_epochs", "log_every_steps"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}={value} must be at least 1")
        require(self.max_steps is None or self.max_steps >= 1, f"train.max_steps={self.max_steps} must be at least 1")


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Args:
        run_folder: the folder of this run; starting again with the same one resumes it
        data: which samples, in what batches
        views: how a sample becomes two views
        model: the backbone and the projection head
        loss: the contrastive loss
        optim: the optimiser
        train: length, precision, checkpoints
        seed: determines initial weights, sample order and views
        executor: what decodes and augments: dali, torchvision, or auto (DALI where it is installed)
    """

    run_folder: Path
    data: DataConfig
    views: ViewSpec = field(default_factory=ViewSpec)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    executor: Literal["auto", "dali", "torchvision"] = "auto"

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63 - 1; use 0")


def pretrain(config: PretrainConfig, ranks: Ranks) -> None:
    """Pretrain, or go on with, the run in `config.run_folder`; the same call on every rank.

    Raises UserError for a configuration that does not fit the data, the machine or the run that is already there,
    and RunFailed when the loss is no longer finite.
    """
    # What is wrong with data or machine shows before anything is written.
    device = device_of(ranks)
    shards = ShardSet(config.data.shards, config.data.splits, config.data.fraction_percent)
    order = sample_order(shards, config.data, config.seed)
    order.require_world(ranks.world)
    with ExitStack() as stack:
        stack.enter_context(process_group(ranks, device))
        require_same(configuration.to_yaml(config), "the configuration")
        require_same(shards.identity, "the content of data.shards")
        on_first_rank(ranks, lambda: stack.enter_context(locked(config.run_folder, "pretraining")))
        on_first_rank(ranks, lambda: _refuse_another_configuration(config))

        # What is learned, and how far.
        engine = DDPEngine(
            build_encoder(config.model, config.seed),
            config.optim,
            config.loss.temperature,
            config.train.precision,
            device,
        )
        total_steps = order.first_step_after_epoch(config.train.epochs - 1)
        last_step = min(total_steps, config.train.max_steps or total_steps)
        first_step = _resume(config.run_folder, engine, shards.identity, ranks)
        require(
            first_step <= last_step,
            f"the run in {config.run_folder} is at step {first_step} already, beyond step {last_step} where "
            "train.epochs and train.max_steps end it; raise them, or choose another run folder",
        )
        on_first_rank(ranks, lambda: _start_writing(config))
        if ranks.is_first:
            _warn_of_aliasing(shards, config.views.size_px)
            say(
                f"pretraining {config.model.backbone} on {shards.samples} samples, {config.train.epochs} epochs, "
                f"{ranks.world} x {device.type}: steps {first_step} to {last_step} in {config.run_folder}"
            )

        # The loop.
        batches = stack.enter_context(
            closing(
                training_batches(
                    shards,
                    order,
                    config.views,
                    seed=config.seed,
                    first_step=first_step,
                    rank=ranks.rank,
                    world=ranks.world,
                    kind=config.executor,
                    device=device,
                    threads=ranks.cpus,
                )
            )
        )
        metrics = stack.enter_context(MetricsWriter(config.run_folder, first_step)) if ranks.is_first else None
        recent = _Recent(config.data.global_batch)
        saved_epoch = order.epoch_of(first_step)
        for batch in _with_bar(islice(batches, last_step - first_step), last_step - first_step, ranks):
            rate = learning_rate_at(config.optim, batch.step, total_steps)
            contrast = engine.step(batch.views, rate)
            recent.add(contrast, batch.wait_s)
            done = batch.step + 1  # steps
            epoch = done * config.data.global_batch / shards.samples
            epochs_done = order.epoch_of(done)
            every = config.train.checkpoint_every_epochs
            checkpoint_due = epochs_done // every > saved_epoch // every or done == last_step

            if checkpoint_due or done % config.train.log_every_steps == 0:
                values = recent.means()
                if not math.isfinite(values["loss"]):
                    raise RunFailed(
                        f"the loss is {values['loss']} at step {done}; start again in a new run folder with an "
                        f"optim.learning_rate below {config.optim.learning_rate}, or with train.precision=fp32"
                    )
                if metrics:
                    metrics.write(done, {"epoch": epoch, "optim/learning_rate": rate, **values})

            if checkpoint_due:
                saved_epoch = epochs_done
                if ranks.is_first:
                    state = CheckpointState(
                        step=done,
                        epoch=round(epoch, 6),
                        backbone=config.model.backbone,
                        data_identity=shards.identity,
                        pixel_mean=shards.pixel_mean,
                        pixel_std=shards.pixel_std,
                        world_size=ranks.world,
                        sternum_version=version("sternum"),
                        torch_version=torch.__version__,
                    )
                    save_checkpoint(config.run_folder, state, engine.model_state(), engine.optimizer_state())
                    say(f"epoch {epoch:6.2f}  step {done:6d}  {recent.summary}  checkpoint saved")
        if ranks.is_first:
            say(f"pretraining is at step {last_step} of {total_steps} in {config.run_folder}")


# What may change between two starts of one run: its length and how it is executed, not what it computes. Where the
# shards lie is free, since their content is compared; the length is not under a schedule that depends on it.
_FREE_TO_CHANGE = re.compile(
    r"run_folder|executor|data\.shards|train\.(max_steps|checkpoint_every_epochs|log_every_steps)"
)


def _refuse_another_configuration(config: PretrainConfig) -> None:
    """Refuse to go on with a run that computes something else; one without a checkpoint may still be changed."""
    path = config.run_folder / "config.yaml"
    if not path.exists() or not find_checkpoints(config.run_folder):
        return
    before = _flat(asdict(configuration.load(PretrainConfig, path)))
    for key, value in _flat(asdict(config)).items():
        free = _FREE_TO_CHANGE.fullmatch(key) or (key, config.optim.schedule) == ("train.epochs", "constant")
        if value != before[key] and not free:
            raise UserError(
                f"{key}={value} differs from {before[key]} of the run in {config.run_folder}; "
                f"take {key}={before[key]} to resume it, or another run folder"
            )


def _start_writing(config: PretrainConfig) -> None:
    """Write the configuration, and remove what a killed process may have left of a checkpoint."""
    configuration.save(config, config.run_folder / "config.yaml")
    for remains in (config.run_folder / "checkpoints").glob(".step-*.partial-*"):
        shutil.rmtree(remains, ignore_errors=True)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _warn_of_aliasing(shards: ShardSet, size_px: int) -> None:
    """Say so when images are reduced so far that their fine texture turns into noise: views are not antialiased."""
    rows = shards.index(0)
    shorter_side_px = int(np.median(np.minimum(rows["height"], rows["width"])))
    if shorter_side_px > 2 * size_px:
        say(
            f"warning: the images' shorter side is {shorter_side_px} px, more than twice views.size_px={size_px}, so "
            f"views alias; pack with --shorter_side_px={size_px * 3 // 2}"
        )


def _resume(run: Path, engine: DDPEngine, data_identity: str, ranks: Ranks) -> int:
    """Load the newest whole checkpoint of the run, if it has one; returns the step to go on with."""
    checkpoint = newest_whole_checkpoint(run, speak=ranks.is_first)
    if checkpoint is None:
        return 0
    if checkpoint.state.data_identity != data_identity:
        raise UserError(
            f"data.shards hold other bytes than those that the run in {run} was trained on; "
            "name the same shards to resume it, or another run folder"
        )
    engine.load(*load_state(checkpoint))
    return checkpoint.step


def _with_bar(batches: Iterator[Batch], steps: int, ranks: Ranks) -> Iterator[Batch]:
    return progress(batches, "pretraining", total=steps, unit="step") if ranks.is_first else batches


class _Recent:
    """Means over the steps since they were last asked for; the loss stays on its device until then."""

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self.summary = ""
        self._start()

    def _start(self) -> None:
        self._contrasts: list[Contrast] = []
        self._wait_s = 0.0
        self._since = time.monotonic()

    def add(self, contrast: Contrast, wait_s: float) -> None:
        self._contrasts.append(contrast)
        self._wait_s += wait_s

    def means(self) -> dict[str, float]:
        loss, top1 = torch.stack([torch.stack(list(contrast)) for contrast in self._contrasts]).mean(0).tolist()
        elapsed_s = time.monotonic() - self._since
        images_per_s = len(self._contrasts) * self._global_batch / elapsed_s
        values = {
            "loss": loss,
            "contrast/top1": top1,
            "speed/images_per_s": images_per_s,
            "speed/data_wait_share": self._wait_s / elapsed_s,
        }
        self.summary = f"loss {loss:.4f}  top-1 {top1:.3f}  {images_per_s:.0f} images/s"
        self._start()
        return values
