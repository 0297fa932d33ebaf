"""Training and probing batches: encoded images joined with drawn views and made into tensors, ahead of their use."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from infra.arrays import Int64
from infra.background import read_ahead
from infra.errors import RunFailed, require
from infra.log import say
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import EncodedBatch, packed_batches, read_batch, sample_batches
from ssl_core.views import ViewExecutor, ViewInputs, ViewTask, executor
from ssl_core.views.spec import VIEWS, ViewParameters, ViewSpec, draw_views, whole_image

Draw = Callable[[EncodedBatch], Sequence[ViewParameters]]
Refuse = Callable[[EncodedBatch, int, str], None]  # what to do about an image (its place, the reason) without views

_READ_AHEAD_BATCHES: Final = 2


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step, on its device.

    views: one float32 (local_batch, 1, size, size) a view, normalised; image i of every view is the same sample.
    rows: (local_batch,) INDEX_ROW, with the identities of sample, patient and study.
    epochs: (local_batch,), the epoch that each sample belongs to.
    valid: (local_batch,), False for a sample whose bytes were damaged or did not decode; its views are blank.
    wait_s: how long the consumer stood still for this batch.
    """

    step: int
    views: list[torch.Tensor]
    rows: npt.NDArray[np.void]
    epochs: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    wait_s: float


def training_batches(
    shards: ShardSet,
    order: SampleOrder,
    spec: ViewSpec,
    *,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    local_world: int = 1,
    kind: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's two views of every step from `first_step` on, without end; close it when done.

    `seed` is the views'; `local_world` is the stream's; `kind`, `device` and `threads` are the executor's. A sample
    that is damaged or does not decode costs nothing but itself: a line names it, and `Batch.valid` masks it. Raises
    UserError when `world` does not divide the lanes and RunFailed when a shard cannot be had.
    """
    order.require_world(world)
    task = _task(shards, spec.size_px, VIEWS, order.global_batch // world, device, threads)

    def mask(batch: EncodedBatch, place: int, reason: str) -> None:
        where = _name(shards, order.batch(batch.step, rank, world), place)
        say(f"warning: {where} does not decode: {reason}; it is masked in step {batch.step}")

    encoded = sample_batches(shards, order, first_step=first_step, rank=rank, world=world, local_world=local_world)
    return _batches(encoded, lambda batch: draw_views(spec, seed, batch.rows, batch.epochs), executor(kind, task), mask)


def image_batches(
    shards: ShardSet,
    size_px: int,
    *,
    local_batch: int = 64,
    mean: float | None = None,
    std: float | None = None,
    kind: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield every sample once, in the order in which it is packed, as one unaugmented view: for features.

    mean, std: the normalisation that the backbone was trained with; None: these shards' own. Raises RunFailed for a
    sample that is damaged or does not decode: features of a blank would be scored as if they were a patient's.
    """
    require(local_batch >= 1, f"local_batch={local_batch} must be 1 or more; try 64")
    task = _task(shards, size_px, 1, local_batch, device, threads)
    task = replace(task, mean=task.mean if mean is None else mean, std=task.std if std is None else std)

    return _batches(
        packed_batches(shards, local_batch),
        lambda batch: [whole_image(size_px, batch.rows["height"], batch.rows["width"])],
        executor(kind, task),
        _stop_at(shards, np.arange(shards.samples), local_batch),
    )


def augmented_batches(
    shards: ShardSet,
    numbers: Int64,
    spec: ViewSpec,
    views_count: int,
    *,
    seed: int,
    local_batch: int = 64,
    mean: float,
    std: float,
    kind: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield `views_count` views of each chosen sample, drawn as in pretraining: those of epochs 0, 1 and so on.

    numbers: (m,) in packed order; those of one shard should be together. The rest as for `image_batches`.
    """
    assert np.all((numbers >= 0) & (numbers < shards.samples)), f"of {shards.samples} samples, {numbers} are chosen"
    require(local_batch >= 1, f"local_batch={local_batch} must be 1 or more; try 64")
    task = replace(_task(shards, spec.size_px, views_count, local_batch, device, threads), mean=mean, std=std)

    def draw(batch: EncodedBatch) -> list[ViewParameters]:
        epochs = [np.full(len(batch.rows), epoch) for epoch in range(-(-views_count // VIEWS))]
        return [view for epoch in epochs for view in draw_views(spec, seed, batch.rows, epoch)][:views_count]

    return _batches(
        read_ahead(_chosen(shards, numbers, local_batch), _READ_AHEAD_BATCHES),
        draw,
        executor(kind, task),
        _stop_at(shards, numbers, local_batch),
    )


def _chosen(shards: ShardSet, numbers: Int64, local_batch: int) -> Iterator[EncodedBatch]:
    for step, start in enumerate(range(0, len(numbers), local_batch)):
        part = numbers[start : start + local_batch]
        yield read_batch(shards, step, Positions(np.zeros_like(part), *shards.locate(part)), mask=False)


def _stop_at(shards: ShardSet, numbers: Int64, local_batch: int) -> Refuse:
    """Refuse an image by ending all; numbers: of the samples of all batches, in their order."""

    def stop(batch: EncodedBatch, place: int, reason: str) -> None:
        start = batch.step * local_batch
        where = _name(shards, Positions(batch.epochs, *shards.locate(numbers[start : start + local_batch])), place)
        raise RunFailed(f"{where} does not decode: {reason}; pack the dataset again")

    return stop


def _task(
    shards: ShardSet,
    size_px: int,
    views_count: int,
    max_batch: int,
    device: torch.device | str,
    threads: int | None,
) -> ViewTask:
    task = ViewTask(size_px, views_count, shards.pixel_mean, shards.pixel_std, max_batch, torch.device(device))
    return replace(task, threads=threads) if threads else task


def _name(shards: ShardSet, positions: Positions, place: int) -> str:
    """Say where the sample at a place of a batch lies."""
    shard, row = int(positions.shard[place]), int(positions.row[place])
    return f"sample {row} of {shards.name(shard)}"


def _batches(
    encoded: Generator[EncodedBatch, None, None], draw: Draw, make: ViewExecutor, refuse: Refuse
) -> Generator[Batch, None, None]:
    in_flight: deque[EncodedBatch] = deque()  # what the executor has taken and not yet given back, in order

    def inputs() -> Iterator[ViewInputs]:
        for batch in encoded:
            in_flight.append(batch)
            whole = [image if valid else None for image, valid in zip(batch.encoded, batch.valid, strict=True)]
            yield ViewInputs(whole, batch.rows, draw(batch))

    with closing(encoded), closing(make.run(inputs())) as made_ahead:
        while True:
            asked_s = time.perf_counter()
            made = next(made_ahead, None)
            wait_s = time.perf_counter() - asked_s
            if made is None:
                return
            batch = in_flight.popleft()
            for place, reason in sorted(made.reasons.items()):
                refuse(batch, place, reason)
            yield Batch(batch.step, made.views, batch.rows, batch.epochs, made.decoded, wait_s)
