"""What an executor is asked for, what it is handed, and what it gives back."""

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ssl_core.views.spec import ViewParameters


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class ViewTask:
    """What is the same for every batch.

    Args:
        size_px: width and height of a view.
        views_count: views of an image.
        mean: pixel mean on the scale 0 to 1.
        std: pixel standard deviation on that scale.
        max_batch: the most images in a batch; smaller ones may come.
        device: where the tensors shall be.
        threads: CPU threads for decoding and views; by default one a CPU that this process may use.
    """

    size_px: int
    views_count: int
    mean: float
    std: float
    max_batch: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = field(default_factory=_usable_cpus)


class ViewInputs(NamedTuple):
    """One batch of N images to make views of.

    encoded: N files; None asks for a blank.
    rows: (N,) INDEX_ROW; a file that declares another height or width is not decoded.
    views: the parameters of each view.
    """

    encoded: Sequence[npt.NDArray[np.uint8] | None]
    rows: npt.NDArray[np.void]
    views: Sequence[ViewParameters]


class ViewBatch(NamedTuple):
    """The views of one batch of N images.

    views: one float32 (N, 1, size, size) a view: (gray level / 255 - mean) / std after the jitter.
    decoded: (N,), False where the views are blank: zeros, the mean gray level.
    reasons: why, by the image's place in the batch, for each image that was handed in and did not decode.
    """

    views: list[torch.Tensor]
    decoded: npt.NDArray[np.bool_]
    reasons: dict[int, str]


class ViewExecutor(Protocol):
    """Makes views; whether by DALI or torchvision, the caller does not see."""

    def run(self, batches: Iterator[ViewInputs]) -> Generator[ViewBatch, None, None]:
        """Make each batch, in order and ahead of its use, by threads that end when this generator is closed.

        An image that does not decode costs nothing but its own views. What `batches` raises is raised here, after
        the batches before it. `batches` is asked for the next one in the caller's thread only, so that the caller
        can close both.
        """
        ...


def until_failure(batches: Iterator[ViewInputs], failures: list[Exception]) -> Iterator[ViewInputs]:
    """Pass batches on; what `batches` raises becomes their end and is put into `failures`."""
    try:
        yield from batches
    except Exception as error:
        failures.append(error)


def blank_out(views: list[torch.Tensor], decoded: npt.NDArray[np.bool_]) -> list[torch.Tensor]:
    """Set to zero, in place, what was made of images that did not decode; returns the views."""
    if not decoded.all():
        for view in views:
            view[torch.from_numpy(~decoded).to(view.device)] = 0
    return views


def first_line(error: BaseException) -> str:
    """Return the first line of a decoder's message, or the name of the error if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
