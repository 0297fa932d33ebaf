"""Training and probing batches: encoded images joined with drawn views and made into tensors, ahead of their use."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import require
from sharding.order import SampleOrder
from sharding.stream import Bytes, EncodedBatch, ShardSet, packed_batches, sample_batches
from ssl_core.views import ViewExecutor, executor
from ssl_core.views.spec import VIEWS, ViewParameters, ViewSpec, draw_views, whole_image

Draw = Callable[[EncodedBatch], Sequence[ViewParameters]]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step, on its device.

    views: one float32 (local_batch, 1, size, size) a view, normalised; image i of every view is the same sample.
    rows: (local_batch,) INDEX_ROW, with the identities of sample, patient and study.
    epochs: (local_batch,), the epoch that each sample belongs to.
    wait_s: how long the consumer stood still for this batch.
    """

    step: int
    views: list[torch.Tensor]
    rows: npt.NDArray[np.void]
    epochs: npt.NDArray[np.int64]
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
    kind: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's two views of every step from `first_step` on, without end; close it when done.

    `seed` is the views'; `kind`, `device` and `threads` are the executor's. Raises UserError when `world` does not
    divide the lanes and RunFailed when bytes are damaged or do not decode.
    """
    order.require_world(world)
    make = executor(
        kind,
        size_px=spec.size_px,
        views_count=VIEWS,
        mean=shards.pixel_mean,
        std=shards.pixel_std,
        max_batch=order.global_batch // world,
        device=device,
        threads=threads,
    )
    encoded = sample_batches(shards, order, first_step=first_step, rank=rank, world=world)
    return _batches(encoded, lambda batch: draw_views(spec, seed, batch.rows, batch.epochs), make)


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

    mean, std: the normalisation that the backbone was trained with; None: these shards' own.
    """
    require(local_batch >= 1, f"local_batch={local_batch} must be 1 or more; try 64")
    make = executor(
        kind,
        size_px=size_px,
        views_count=1,
        mean=shards.pixel_mean if mean is None else mean,
        std=shards.pixel_std if std is None else std,
        max_batch=local_batch,
        device=device,
        threads=threads,
    )
    encoded = packed_batches(shards, local_batch)
    return _batches(encoded, lambda batch: [whole_image(size_px, batch.rows["height"], batch.rows["width"])], make)


def _batches(
    encoded: Generator[EncodedBatch, None, None], draw: Draw, make: ViewExecutor
) -> Generator[Batch, None, None]:
    in_flight: deque[EncodedBatch] = deque()  # what the executor has taken and not yet given back, in order

    def inputs() -> Iterator[tuple[list[Bytes], Sequence[ViewParameters]]]:
        for batch in encoded:
            in_flight.append(batch)
            yield batch.encoded, draw(batch)

    with closing(encoded), closing(make.run(inputs())) as made:
        while True:
            asked_s = time.perf_counter()
            views = next(made, None)
            wait_s = time.perf_counter() - asked_s
            if views is None:
                return
            batch = in_flight.popleft()
            yield Batch(batch.step, views, batch.rows, batch.epochs, wait_s)
