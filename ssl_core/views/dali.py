"""The views by NVIDIA DALI: one decode an image, then one warp, one blur and one linear map a view.

Nothing random and no position is kept in DALI: bytes and parameters are fed in, pixels come out, bit for bit the
same at every batch size and thread count. With a GPU, decoding is `mixed` and all after it is on the GPU.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from infra.errors import RunFailed
from ssl_core.views.spec import ViewParameters

_IN_FLIGHT: Final = 2
# A Gaussian this narrow is exactly the identity (its outer taps underflow to 0): one blur for all samples takes as
# long as a blur for some (conditional execution) or less, and gives the same bits.
_NO_BLUR_PX: Final = 1e-3


class DaliExecutor:
    """Runs on the CPU, or on one GPU when `device` is one."""

    def __init__(
        self,
        size_px: int,
        views_count: int,
        mean: float,
        std: float,
        device: torch.device,
        threads: int,
        max_batch: int,
    ) -> None:
        self.size_px, self.views_count, self.mean, self.std = size_px, views_count, mean, std
        self.device, self.threads, self.max_batch = device, threads, max_batch

    def run(
        self, batches: Iterator[tuple[list[npt.NDArray[np.uint8]], Sequence[ViewParameters]]]
    ) -> Generator[list[torch.Tensor], None, None]:
        """Yield one tensor (n, 1, size, size) a view for each batch; two batches are in the making meanwhile.

        What `batches` raises is raised here, after the batches before it. Raises RunFailed when DALI cannot decode.
        """
        failures: list[BaseException] = []
        pipeline = self._build(self._inputs(batches, failures))
        while (outputs := self._next(pipeline)) is not None:
            # the tensors share DALI's memory, which DALI keeps for as long as they live
            yield [from_dlpack(output.as_tensor()).permute(0, 3, 1, 2) for output in outputs]
        if failures:
            raise failures[0]

    def _next(self, pipeline: Any) -> Any:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            return pipeline.run(stream)
        except StopIteration:
            return None
        except RuntimeError as error:
            raise RunFailed(f"DALI could not make the views of a batch: {_first_line(error)}") from error

    def _inputs(
        self,
        batches: Iterator[tuple[list[npt.NDArray[np.uint8]], Sequence[ViewParameters]]],
        failures: list[BaseException],
    ) -> Iterator[tuple[Any, ...]]:
        """Lay a batch out as DALI's inputs: the encoded images, then matrix, sigma, gain and offset of each view."""
        try:
            for encoded, views in batches:
                inputs: list[Any] = [encoded]
                for view in views:
                    sigma = np.maximum(view.blur_sigma_px, np.float32(_NO_BLUR_PX))
                    gain, offset = view.gain_and_offset(self.mean, self.std)
                    inputs += [np.ascontiguousarray(values) for values in (view.matrix, sigma, gain, offset)]
                yield tuple(inputs)
        except Exception as error:  # kept until the batches in flight have come out
            failures.append(error)

    def _build(self, source: Iterator[tuple[Any, ...]]) -> Any:
        on_gpu = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self.max_batch,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=_IN_FLIGHT,
            exec_dynamic=True,
        )
        with pipeline:
            encoded, *parameters = fn.external_source(
                source=source,
                num_outputs=1 + 4 * self.views_count,
                batch=True,
                dtype=[types.UINT8] + [types.FLOAT] * (4 * self.views_count),
                ndim=[1] + [2, 0, 0, 0] * self.views_count,
            )
            images = fn.decoders.image(
                encoded,
                device="mixed" if on_gpu else "cpu",
                output_type=types.GRAY,  # ANY_DATA crashes DALI 2.4 on gray JPEGs
                adjust_orientation=False,
            )
            views = [self._view(images, *parameters[4 * i : 4 * i + 4]) for i in range(self.views_count)]
            pipeline.set_outputs(*views)
        pipeline.build()
        return pipeline

    def _view(self, images: Any, matrix: Any, sigma: Any, gain: Any, offset: Any) -> Any:
        warped = fn.warp_affine(
            images,
            matrix=matrix,
            inverse_map=True,  # the matrix leads from the view to the image
            size=[self.size_px, self.size_px],
            interp_type=types.INTERP_LINEAR,
            dtype=types.FLOAT,  # faster than UINT8 here, and nothing is rounded
        )
        blurred = fn.gaussian_blur(warped, sigma=sigma)
        return fn.brightness_contrast(blurred, brightness=gain, brightness_shift=offset, dtype=types.FLOAT)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("Error")]
    return (named or lines or [type(error).__name__])[0]
