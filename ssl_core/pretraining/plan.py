"""`sternum pretrain --check`: everything that a run would need, looked at before it is started; nothing is trained."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import torch

from infra.configuration.options import key, registered, setting
from infra.errors import RunFailed, UserError, require
from infra.extras import require_extra
from infra.ranks.devices import device_of
from infra.ranks.processes import Ranks, require_world
from infra.storage.files import require_space
from infra.words import counted
from sharding.auditing.set_names import require_one_set_per_name
from sharding.format.label_counts import LabelCounts
from sharding.format.manifest import Manifest
from sharding.reading.manifests import read_manifest
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import NO_SIBLINGS, Siblings
from sharding.reading.stream import read_batch, require_room, sample_order
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.engines.deepspeed_json import deepspeed_settings
from ssl_core.model.encoder import build_encoder
from ssl_core.model.optimizer import learning_rate_at
from ssl_core.pretraining.checks import (
    aliasing_warning,
    require_all_sizes,
    require_equal_parts,
    require_graphs_possible,
)
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.initial_weights import start_from
from ssl_core.pretraining.memory import StepMemory, checkpoint_bytes, step_memory
from ssl_core.pretraining.resume import checkpoint_to_resume, settled
from ssl_core.pretraining.run import early_stages
from ssl_core.views import ViewInputs, ViewTask, build_view_executor
from ssl_core.views.batches import Stage
from ssl_core.views.drawing import draw_views
from ssl_core.views.second_images import siblings_of
from ssl_core.views.spec import VIEWS

_DRAWN: Final = 4  # images whose views are made
_SHOWN_LABELS: Final = 20


@registered(PretrainConfig)
def check_plan(config: PretrainConfig, ranks: Ranks) -> Iterator[str]:
    """Yield one line for each fact about a run; write nothing and train nothing.

    Remote shards' indexes and a few images are downloaded to the cache, as the run itself would do.

    Args:
        config: the run
        ranks: this process among all; the plan is that of the whole run, made on the first rank

    Raises:
        UserError: for the first thing that the run would refuse, or for which memory or disk are too small
        RunFailed: if shards or checkpoints are damaged or cannot be reached
    """
    world = config.train.world_size or ranks.world
    device = device_of(ranks, config.train.device, setting(config.train, "device"))
    require_graphs_possible(config, device, world)
    shards = ShardSet(config.data.shards, config.data.splits, config.data.fraction_percent, config.data.fetch)
    order = sample_order(shards, config.data, config.seed)
    order.require_world(world)
    if ranks.world > 1:
        require_world(config.train, "world_size", ranks.world)
    require_equal_parts(config, world)
    config.log.require_installed()
    require_one_set_per_name(shards)
    yield _data(shards)
    for location in config.data.shards:
        yield _labels(read_manifest(location, config.data.fetch), shards)
    siblings = siblings_of(config.views, shards, config.seed)
    require_room(shards, order, world, ranks.local_world, siblings)
    yield _views(config, shards, order, siblings)
    if siblings:
        yield _siblings(config, siblings)
    if warning := aliasing_warning(shards, config):
        yield warning
    total = order.first_step_after_epoch(config.train.epochs - 1)
    checkpoint = _checkpoint(config, shards)
    first = checkpoint.state.step if checkpoint else 0
    config = settled(config, device, checkpoint)
    yield _steps(config, order, world, first, total)
    if config.train.stages:
        yield _stages(config, order, total)
    memory = step_memory(config, world, _zero_stage(config))
    yield f"model: {config.model.backbone}, {memory.parameters:,} weights"
    encoder = build_encoder(config.model, config.seed, config.views.size_px)
    require_all_sizes(config, encoder)
    if start := start_from(config, encoder):
        yield str(start)
    yield _memory(config, memory, device, ranks)
    yield _disk(config, memory, order, range(first, min(total, config.train.max_steps or total)))


def _data(shards: ShardSet) -> str:
    patients = len(np.unique(shards.whole_index()["patient"]))
    size = sum(shard.size_bytes for shard in shards.shards)
    splits = sorted({shard.split or "no split" for shard in shards.shards})
    return (
        f"data: {counted(shards.samples, 'image')} of {counted(patients, 'patient')} in "
        f"{counted(len(shards.shards), 'shard')} ({_megabytes(size)}) of "
        f"{', '.join(dict.fromkeys(shards.names))}; {', '.join(splits)}"
    )


def _labels(manifest: Manifest, shards: ShardSet) -> str:
    """Say which labels divide a set, since a set without any cannot be probed after its pretraining was paid for."""
    if manifest.labels is None:  # an older version packed it, and did not count
        known = dividing = list(shards.metadata(shards.names.index(manifest.name), 0)["labels"])
    else:
        counted = {name: counts for name, counts in manifest.labels.items() if counts.present or counts.absent}
        known = [_count(name, counts) for name, counts in counted.items()]
        dividing = [_count(name, counts) for name, counts in counted.items() if counts.present and counts.absent]
    start = f"labels of {manifest.name}:"
    if dividing:
        return f"{start} it can be probed for {_some(dividing)}"
    what = f"one class only, {_some(known)}, and a probe needs two" if known else "none"
    more = "pack images of another class too, " if known else ""
    return (
        f"{start} {what}, so it cannot be probed; {more}probe other sets, or give this one a table of labels (sternum "
        "probe --data.labels.csv)"
    )


def _count(name: str, counts: LabelCounts) -> str:
    return f"{name} ({counts.present:,} present, {counts.absent:,} absent)"


def _some(names: Sequence[str]) -> str:
    """List the first names, and say how many more there are."""
    more = f" and {len(names) - _SHOWN_LABELS} more" if len(names) > _SHOWN_LABELS else ""
    return f"{', '.join(names[:_SHOWN_LABELS])}{more}"


def _views(config: PretrainConfig, shards: ShardSet, order: SampleOrder, siblings: Siblings | None) -> str:
    first = order.batch(0)
    shown = Positions(*(values[:_DRAWN] for values in first))
    batch = read_batch(shards, 0, shown, siblings.draw(shown) if siblings else NO_SIBLINGS, mask=False)
    spec = config.views
    views = draw_views(spec, config.seed, batch.rows, batch.epochs, batch.second_rows)
    count = len(batch.encoded)
    task = ViewTask(spec.size_px, VIEWS, mean=0.0, std=1 / 255, max_batch=count, threads=1)
    task = replace(task, steps=spec.steps, small_sizes_px=spec.small_sizes_px, siblings=True)
    inputs = ViewInputs(list(batch.encoded), batch.rows, views, batch.siblings)
    [made] = build_view_executor(config.executor, task).run(iter([inputs]))
    for position, reason in made.reasons.items():
        what = f"{'the sibling of ' * (position >= count)}sample {position % count}"
        raise RunFailed(f"{what} of the first step does not decode: {reason}; run sternum verify")
    sizes = [f"{VIEWS} of {spec.size_px} x {spec.size_px} px"]
    sizes += [f"{spec.small_views} of {spec.small.size_px} x {spec.small.size_px} px"] * bool(spec.small_views)
    return f"views: {' and '.join(sizes)} for each image, made of {count} images"


def _siblings(config: PretrainConfig, siblings: Siblings) -> str:
    count, samples = int(siblings.has_any.sum()), len(siblings.has_any)
    return (
        f"second views: {count:,} of {samples:,} images ({100 * count / samples:.0f} %) have others of the same "
        f"{siblings.same}, and show one with {setting(config.views, 'second_probability')}; the rest show themselves"
    )


def _checkpoint(config: PretrainConfig, shards: ShardSet) -> Checkpoint | None:
    """Return where the run would go on; None for a new run, also if only its mirror has checkpoints."""
    if not find_checkpoints(config.run_folder):
        return None
    return checkpoint_to_resume(config, shards.identity, Ranks(), None)


def _steps(config: PretrainConfig, order: SampleOrder, world: int, first: int, total: int) -> str:
    learning_rate_at(config.optim, 0, total, config.data.global_batch)  # rejects a warm-up longer than the run
    train = config.train
    last = min(total, train.max_steps or total)
    require(
        first < last,
        f"the run in {config.run_folder} is at step {first} already, and {setting(train, 'epochs')} and "
        f"{setting(train, 'max_steps')} end it at step {last}; raise them, or choose another run folder",
    )
    start = f"from step {first} of the run in {config.run_folder}" if first else f"a new run in {config.run_folder}"
    stop = f", this start until step {last:,}" if last < total else ""
    each = config.data.global_batch // world
    return (
        f"steps: {total:,} in {counted(train.epochs, 'epoch')} of {order.samples / order.global_batch:,.1f} steps, "
        f"{config.data.global_batch} images a step on {counted(world, 'process')} ({each} each); {start}{stop}"
    )


def _stages(config: PretrainConfig, order: SampleOrder, total: int) -> str:
    stages = [*early_stages(config, order), Stage(config.views, total)]
    return "stages: views of " + ", then of ".join(
        f"{stage.spec.size_px} px until step {stage.end_step:,}" for stage in stages
    )


def _memory(config: PretrainConfig, memory: StepMemory, device: torch.device, ranks: Ranks) -> str:
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory
    else:
        room = psutil.virtual_memory().total // ranks.local_world
    parts = (("model", memory.model), ("gradients", memory.gradients), ("optimizer", memory.optimizer))
    line = (
        f"memory: {_megabytes(memory.total)} for each process ("
        + ", ".join(f"{name} {_megabytes(size)}" for name, size in parts)
        + f", activations {_megabytes(memory.activations)}: what autograd saves for one micro-batch in "
        f"{config.train.precision}, measured without content), of {_megabytes(room)} on its "
        f"{device.type}; the loss and temporary buffers come on top"
    )
    parts_now = config.train.micro_batches
    require(
        memory.total <= room,
        f"{line}; raise {setting(config.train, 'micro_batches')} to {2 * parts_now}, or lower "
        f"{key(config.data, 'global_batch')} or {key(config.views, 'size_px')}",
    )
    return line


def _zero_stage(config: PretrainConfig) -> int:
    if config.engine.kind == "ddp":
        return 0
    require_extra("deepspeed", setting(config.engine, "kind"), instead=f"take {key(config.engine, 'kind')}=ddp")
    engine, _ = deepspeed_settings(config.engine, config.train.precision, config.data.global_batch)
    return engine.zero_stage or 0


def _disk(config: PretrainConfig, memory: StepMemory, order: SampleOrder, steps: range) -> str:
    """Compare the checkpoints that the run will keep with the space that is free."""
    saves = _saves(config, order, steps)
    rule = config.checkpoints
    kept = saves if rule.keep_last is None else min(saves, rule.keep_last + 1)  # one more while it is written
    if rule.keep_every_epochs:
        kept = min(saves, kept + config.train.epochs // rule.keep_every_epochs)
    each = checkpoint_bytes(config, memory)
    folder = config.run_folder / "checkpoints"
    try:
        require_space(folder, kept * each)
    except UserError as error:
        raise UserError(
            f"{counted(kept, 'checkpoint')} of {_megabytes(each)}: {error}, or keep fewer: --{key(rule, 'keep_last')}=2"
        ) from error
    free = _free_bytes(folder)
    return (
        f"disk: {counted(kept, 'checkpoint')} of {_megabytes(each)} at a time, {_megabytes(kept * each)} of "
        f"{_megabytes(free)} free"
    )


def _saves(config: PretrainConfig, order: SampleOrder, steps: range) -> int:
    """Return how many checkpoints these steps save: by epochs, by steps, and at the end."""
    train = config.train
    epoch_steps = order.samples * train.checkpoint_every_epochs / order.global_batch
    due = {
        math.ceil(number * epoch_steps)
        for number in range(1, math.ceil(train.epochs / train.checkpoint_every_epochs) + 1)
    }
    if train.checkpoint_every_steps is not None:
        due |= set(range(0, steps.stop + 1, train.checkpoint_every_steps))
    return len({step for step in due if steps.start < step < steps.stop}) + 1


def _free_bytes(path: Path) -> int:
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    system = os.statvfs(parent)
    return system.f_bavail * system.f_frsize


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 10**10 else f"{size_bytes / 1e6:,.0f} MB"
