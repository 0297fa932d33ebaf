"""The interface of view executors: their task, their inputs and their outputs."""

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from infra.arrays import Bool, Records, UInt8
from infra.ranks.processes import MOST_DECODING_THREADS
from sharding.reading.stream import NO_SIBLING_IMAGES, EncodedSiblings
from ssl_core.views.parameters import Steps, ViewParameters


def _threads() -> int:
    return min(MOST_DECODING_THREADS, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class ViewTask:
    """The properties that all batches share.

    Attributes:
        size_px: width and height of a view
        views_count: views of an image of this size
        mean: pixel mean on the scale 0 to 1
        std: pixel standard deviation on the same scale
        max_batch: most samples in a batch
        device: device of the resulting tensors
        threads: CPU threads for decoding and views; by default one for each CPU that this process may use, up to 16
        steps: the optional steps of the views
        siblings: whether second views may show siblings
        small_sizes_px: width and height of each further view of an image
    """

    size_px: int
    views_count: int
    mean: float
    std: float
    max_batch: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = field(default_factory=_threads)
    steps: Steps = field(default_factory=Steps)
    siblings: bool = False
    small_sizes_px: tuple[int, ...] = ()

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """Width and height of each view of an image."""
        return (self.size_px,) * self.views_count + self.small_sizes_px


class ViewInputs(NamedTuple):
    """One batch of N images.

    Attributes:
        encoded: N files; None for a blank
        rows: (N,) INDEX_ROW; a file whose header has another height or width is not decoded
        views: the parameters of each view
        siblings: the images that second views show instead, only of samples that are no blanks
    """

    encoded: Sequence[UInt8 | None]
    rows: Records
    views: Sequence[ViewParameters]
    siblings: EncodedSiblings = NO_SIBLING_IMAGES


class ViewBatch(NamedTuple):
    """The views of one batch of N images.

    Attributes:
        views: for each view, float32 (N, 1, its size, its size): (value - mean) / std of values on the scale 0 to 1
        decoded: (N,), False where the views are blank: zeros, the mean gray level
        reasons: why an image did not decode, by its position in the batch, or N + that of the sample for a sibling;
            blanks on request have none
    """

    views: list[torch.Tensor]
    decoded: Bool
    reasons: dict[int, str]


class ViewExecutor(ABC):
    """Makes views; all executors give the same views within PIXEL_TOLERANCE."""

    def __init__(self, task: ViewTask) -> None:
        self.task = task

    @abstractmethod
    def run(self, batches: Iterator[ViewInputs]) -> Generator[ViewBatch, None, None]:
        """Make each batch, in order and ahead of its use, in threads that end when the generator is closed.

        An image that does not decode affects only its own views. An error of `batches` is raised here, after the
        batches before it. `batches` advances in the caller's thread only, so that the caller can close both.

        Raises:
            RunFailed: if an executor fails for another reason than an image
        """


def until_failure(batches: Iterator[ViewInputs], failures: list[Exception]) -> Iterator[ViewInputs]:
    """Pass batches on; if `batches` raises, end and append the error to `failures`."""
    try:
        yield from batches
    except Exception as error:
        failures.append(error)


def blank_out(views: list[torch.Tensor], decoded: Bool) -> list[torch.Tensor]:
    """Set the views of images that did not decode to zero, in place; return the views."""
    if not decoded.all():
        for view in views:
            view[torch.from_numpy(~decoded).to(view.device)] = 0
    return views


def first_line(error: BaseException) -> str:
    """Return the first line of a decoder's message, or the name of the error if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
