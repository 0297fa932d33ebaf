"""Views of encoded images: one specification (`spec`), two executors (`dali`, `torchvision`) that carry it out.

An executor takes encoded images and drawn parameters and gives normalised tensors. The two agree within
PIXEL_TOLERANCE, in gray levels from 0 to 255.
"""

import importlib.util
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import UserError
from ssl_core.views.spec import ViewParameters

KINDS: Final = ("auto", "dali", "torchvision")
PIXEL_TOLERANCE: Final = {"mean": 0.1, "max": 1.0}


class ViewExecutor(Protocol):
    """Makes views; whether by DALI or torchvision, the caller does not see."""

    def run(
        self, batches: Iterator[tuple[list[npt.NDArray[np.uint8]], Sequence[ViewParameters]]]
    ) -> Generator[list[torch.Tensor], None, None]:
        """Turn each (n encoded images, their views' parameters) into one float32 (n, 1, size, size) a view, in order.

        Values are (gray level / 255 - mean) / std after the jitter. Batches are made ahead of their use.
        """
        ...


def executor(
    kind: str,
    *,
    size_px: int,
    views_count: int,
    mean: float,
    std: float,
    max_batch: int,
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> ViewExecutor:
    """Return the executor of this kind; `auto` is DALI where it is installed, else torchvision.

    Args:
        kind: auto, dali or torchvision.
        size_px: width and height of a view.
        views_count: views of an image.
        mean: pixel mean on the scale 0 to 1.
        std: pixel standard deviation on that scale.
        max_batch: the most images in a batch; smaller ones may come.
        device: where the tensors shall be.
        threads: CPU threads for decoding and views; None: one a CPU that this process may use.

    Raises:
        UserError: the kind is unknown or not installed.
    """
    if kind not in KINDS:
        raise UserError(f"executor={kind!r} must be one of {', '.join(KINDS)}; try auto")
    has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if kind == "dali" and not has_dali:
        raise UserError(
            "executor='dali' needs NVIDIA DALI, which is not installed; pip install nvidia-dali-cuda130, "
            "or set executor=torchvision"
        )
    threads = threads or len(os.sched_getaffinity(0))
    arguments = (size_px, views_count, mean, std, torch.device(device), threads, max_batch)
    if kind == "torchvision" or not has_dali:
        from ssl_core.views.torchvision import TorchvisionExecutor  # noqa: PLC0415  each import takes a second

        return TorchvisionExecutor(*arguments)
    from ssl_core.views.dali import DaliExecutor  # noqa: PLC0415

    return DaliExecutor(*arguments)
