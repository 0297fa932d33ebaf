"""Batches for training and probing: encoded images joined with drawn views and made into tensors ahead of their use."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from infra.arrays import Bool, Int64, Records, UInt64
from infra.errors import RunFailed, require
from infra.log import say
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Siblings
from sharding.reading.stream import EncodedBatch, packed_batches, sample_batches
from ssl_core.views import ViewExecutor, ViewInputs, ViewTask, build_view_executor
from ssl_core.views.drawing import draw_views
from ssl_core.views.parameters import Fit, Steps, ViewParameters, whole_image
from ssl_core.views.spec import VIEWS, ViewSpec

Draw = Callable[[EncodedBatch], Sequence[ViewParameters]]
Reject = Callable[[EncodedBatch, int, str], None]  # handles an image that does not decode: its position, the reason


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step, on its device.

    Attributes:
        step: number of the step
        views: for each view, float32 (local_batch, 1, size, size), normalized; image i of every view is the same
            sample; in pretraining two large views, then the small ones
        rows: (local_batch,) INDEX_ROW, with the identities of sample, patient and study
        epochs: (local_batch,), the epoch of each sample
        valid: (local_batch,), False for a sample that was damaged or did not decode, or whose sibling was or did not;
            its views are blank
        wait_s: seconds that the consumer waited for this batch
        second_samples: (local_batch,), identity of the image that the second view shows
        instances: (local_batch,), identity of what the loss tells apart: the sample, or the study or patient whose
            images second views may show
    """

    step: int
    views: list[torch.Tensor]
    rows: Records
    epochs: Int64
    valid: Bool
    wait_s: float
    second_samples: UInt64
    instances: UInt64


class ImageViews(Protocol):
    """The views that `image_batches` makes of each image."""

    @property
    def size_px(self) -> int:
        """Width and height of a view."""

    @property
    def count(self) -> int:
        """Views of each image."""

    @property
    def steps(self) -> Steps:
        """The optional steps of the views."""

    def draw(self, batch: EncodedBatch) -> Sequence[ViewParameters]:
        """Return the parameters of each view of the batch."""


@dataclass(frozen=True)
class WholeImage:
    """The image without augmentation, made square by `fit`; with `mirrored` a second view, its mirror image."""

    size_px: int
    fit: Fit
    mirrored: bool = False
    antialias: bool = False

    @property
    def steps(self) -> Steps:
        """The optional steps of the views."""
        return Steps(antialias=self.antialias)

    @property
    def count(self) -> int:
        """Views of each image."""
        return 2 if self.mirrored else 1

    def draw(self, batch: EncodedBatch) -> Sequence[ViewParameters]:
        """Return the parameters of each view."""
        heights, widths = batch.rows["height"], batch.rows["width"]
        return [
            whole_image(self.size_px, heights, widths, self.fit, mirrored=bool(number), antialias=self.antialias)
            for number in range(self.count)
        ]


@dataclass(frozen=True)
class RandomViews:
    """`count` augmented views, drawn as pretraining's large ones: those of epochs 0, 1 and so on, by `seed`."""

    spec: ViewSpec
    count: int
    seed: int

    @property
    def size_px(self) -> int:
        """Width and height of a view."""
        return self.spec.size_px

    @property
    def steps(self) -> Steps:
        """The optional steps of the views."""
        return self.spec.steps

    def draw(self, batch: EncodedBatch) -> Sequence[ViewParameters]:
        """Return the parameters of each view."""
        epochs = [np.full(len(batch.rows), epoch) for epoch in range(-(-self.count // VIEWS))]
        large = replace(self.spec, small_views=0)
        return [view for epoch in epochs for view in draw_views(large, self.seed, batch.rows, epoch)][: self.count]


class Stage(NamedTuple):
    """The steps before `end_step` and after an earlier stage, whose views have ranges and a size of their own."""

    spec: ViewSpec
    end_step: int


def training_batches(
    shards: ShardSet,
    order: SampleOrder,
    spec: ViewSpec,
    *,
    seed: int,
    stages: Sequence[Stage] = (),
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    local_world: int = 1,
    siblings: Siblings | None = None,
    view_executor: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's views of every step from `first_step` on, without end; close it when done.

    Encoded images are read ahead across the end of a stage; views are not made ahead of it, so each has its own size.
    A sample that is damaged or does not decode affects only itself: a warning names it, and `Batch.valid` masks it.

    Args:
        shards: the samples
        order: order of the samples
        spec: ranges of the views, after all `stages`
        seed: seed of the views
        stages: the stages before that, in order
        first_step: step of the first batch
        rank: this rank
        world: number of ranks
        local_world: ranks on this machine, as in `sample_batches`
        siblings: draws other images for second views; without them all views show the sample
        view_executor: auto, dali or torchvision
        device: device of the views
        threads: CPU threads of the executor; by default one for each usable CPU

    Raises:
        UserError: if `world` does not divide the lanes
        RunFailed: if a shard is unavailable
    """
    order.require_world(world)

    def maker(of_stage: ViewSpec, batches: int | None) -> _Maker:
        task = _task(shards, of_stage.size_px, VIEWS, of_stage.steps, order.global_batch // world, device, threads)
        task = replace(task, small_sizes_px=of_stage.small_sizes_px, siblings=siblings is not None)
        executor = build_view_executor(view_executor, task)

        def draw(batch: EncodedBatch) -> Sequence[ViewParameters]:
            return draw_views(of_stage, seed, batch.rows, batch.epochs, batch.second_rows)

        return _Maker(executor, draw, batches, siblings.same if siblings else "sample")

    def mask(batch: EncodedBatch, position: int, reason: str) -> None:
        positions, count = order.batch(batch.step, rank, world), len(batch.rows)
        consequence = "it is masked"
        if position >= count and siblings is not None:
            drawn = siblings.draw(positions)
            positions, position = drawn.positions, int(np.searchsorted(drawn.items, position - count))
            consequence = "the sample whose second view shows it is masked"
        name = _sample_name(shards, positions, position)
        say(f"warning: {name} does not decode: {reason}; {consequence} in step {batch.step}")

    encoded = sample_batches(
        shards, order, first_step=first_step, rank=rank, world=world, local_world=local_world, siblings=siblings
    )
    makers, step = [], first_step
    for stage in stages:
        if stage.end_step > step:
            makers.append(maker(stage.spec, stage.end_step - step))
            step = stage.end_step
    return _batches(encoded, [*makers, maker(spec, None)], mask)


def image_batches(
    shards: ShardSet,
    views: ImageViews,
    *,
    numbers: Int64 | None = None,
    local_batch: int = 64,
    mean: float | None = None,
    std: float | None = None,
    view_executor: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield the views of each chosen image once, for features.

    Args:
        shards: the images
        views: views to make of each image
        numbers: (m,) positions of the chosen images in packed order; images of one shard should be adjacent. By default
            all images
        local_batch: images in a batch
        mean: pixel mean for the normalization, as the backbone was trained; by default that of these shards
        std: pixel standard deviation, likewise
        view_executor: auto, dali or torchvision
        device: device of the views
        threads: CPU threads of the executor; by default one for each usable CPU

    Raises:
        RunFailed: if an image is damaged or does not decode; otherwise a blank's features would count as a patient's
    """
    require(local_batch >= 1, f"local_batch={local_batch} must be at least 1; try 64")
    numbers = np.arange(shards.samples) if numbers is None else numbers
    assert np.all((numbers >= 0) & (numbers < shards.samples)), f"numbers {numbers} of {shards.samples} samples"
    task = _task(shards, views.size_px, views.count, views.steps, local_batch, device, threads)
    task = replace(task, mean=task.mean if mean is None else mean, std=task.std if std is None else std)

    def stop(batch: EncodedBatch, position: int, reason: str) -> None:
        start = batch.step * local_batch
        positions = Positions(batch.epochs, *shards.locate(numbers[start : start + local_batch]))
        raise RunFailed(
            f"{_sample_name(shards, positions, position)} does not decode: {reason}; pack the dataset again"
        )

    return encoded_views(packed_batches(shards, local_batch, numbers), views, task, view_executor, stop)


def encoded_views(
    encoded: Generator[EncodedBatch, None, None],
    views: ImageViews,
    task: ViewTask,
    view_executor: str,
    reject: Reject,
) -> Generator[Batch, None, None]:
    """Yield the views of encoded images from anywhere; close it when done, which also closes `encoded`.

    Args:
        encoded: the images
        views: views to make of each image
        task: their size, number, normalization and device
        view_executor: auto, dali or torchvision
        reject: handles an image that does not decode
    """
    maker = _Maker(build_view_executor(view_executor, task), views.draw)
    return _batches(encoded, [maker], reject)


def _task(
    shards: ShardSet,
    size_px: int,
    views_count: int,
    steps: Steps,
    max_batch: int,
    device: torch.device | str,
    threads: int | None,
) -> ViewTask:
    mean, std = shards.pixel_mean, shards.pixel_std
    task = ViewTask(size_px, views_count, mean, std, max_batch, torch.device(device), steps=steps)
    return replace(task, threads=threads) if threads else task


def _sample_name(shards: ShardSet, positions: Positions, position: int) -> str:
    """Name the shard and the row of the sample at a position of a batch."""
    shard, row = int(positions.shard[position]), int(positions.row[position])
    return f"sample {row} of {shards.name(shard)}"


class _Maker(NamedTuple):
    """Draws and makes the views of consecutive batches.

    Attributes:
        executor: makes the views
        draw: draws them
        batches: how many batches; None for all that remain
        instance: what the loss tells apart
    """

    executor: ViewExecutor
    draw: Draw
    batches: int | None = None
    instance: Literal["sample", "study", "patient"] = "sample"


def _batches(
    encoded: Generator[EncodedBatch, None, None], makers: Sequence[_Maker], reject: Reject
) -> Generator[Batch, None, None]:
    """Yield the views of all batches; each maker begins when the one before it has made its last batch."""
    with closing(encoded):
        for maker in makers:
            yield from _made(islice(encoded, maker.batches), maker, reject)


def _made(encoded: Iterator[EncodedBatch], maker: _Maker, reject: Reject) -> Generator[Batch, None, None]:
    in_flight: deque[EncodedBatch] = deque()  # batches inside the executor, in order

    def inputs() -> Iterator[ViewInputs]:
        for batch in encoded:
            in_flight.append(batch)
            images = [image if valid else None for image, valid in zip(batch.encoded, batch.valid, strict=True)]
            yield ViewInputs(images, batch.rows, maker.draw(batch), batch.siblings.of(batch.valid))

    with closing(maker.executor.run(inputs())) as view_batches:
        while True:
            began_s = time.perf_counter()
            view_batch = next(view_batches, None)
            wait_s = time.perf_counter() - began_s
            if view_batch is None:
                return
            batch = in_flight.popleft()
            for position, reason in sorted(view_batch.reasons.items()):
                reject(batch, position, reason)
            yield Batch(
                batch.step,
                view_batch.views,
                batch.rows,
                batch.epochs,
                view_batch.decoded,
                wait_s,
                batch.second_rows["sample"],
                batch.rows[maker.instance],
            )
