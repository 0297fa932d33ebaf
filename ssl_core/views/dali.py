"""The views by NVIDIA DALI: one decode an image, then one warp, one blur and one linear map a view.

Nothing random and no position is kept in DALI: bytes and parameters are fed in, pixels come out, bit for bit the
same at every batch size and thread count. With a GPU, decoding is `mixed` and all after it is on the GPU.

An image that DALI cannot decode ends its pipeline, and with it the batches in the making. They are kept until they
have come out, so that they can be made again, by a new pipeline, without the images that are at fault.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from infra.errors import RunFailed
from sharding.reading.stream import BLANK
from ssl_core.views.header_check import header_problem
from ssl_core.views.task import ViewBatch, ViewInputs, ViewTask, blank_out, first_line, until_failure

_IN_FLIGHT: Final = 3  # the batch that is used and two in the making
# A Gaussian this narrow is exactly the identity (its outer taps underflow to 0): one blur for all samples takes as
# long as a blur for some (conditional execution) or less, and gives the same bits.
_NO_BLUR_PX: Final = 1e-3


@dataclass
class _Prepared:
    """A batch laid out as DALI's inputs, BLANK for each image that is not to be decoded.

    parameters: matrix, sigma, gain and offset of each view, one after the other.
    """

    encoded: list[npt.NDArray[np.uint8]]
    parameters: list[npt.NDArray[np.float32]]
    decoded: npt.NDArray[np.bool_]
    reasons: dict[int, str]

    def leave_out(self, place: int, reason: str | None) -> None:
        self.encoded[place] = BLANK
        self.decoded[place] = False
        if reason is not None:
            self.reasons[place] = reason


class DaliExecutor:
    """Runs on the CPU, or on one GPU when the task's device is one."""

    def __init__(self, task: ViewTask) -> None:
        self.task = task

    def run(self, batches: Iterator[ViewInputs]) -> Generator[ViewBatch, None, None]:
        """Yield each batch while two more are in the making; see `ViewExecutor.run`.

        Raises RunFailed when DALI fails for another reason than an image.
        """
        failures: list[Exception] = []  # of `batches`, kept until the batches in flight have come out
        prepared = map(self._prepare, until_failure(batches, failures))
        in_flight: deque[_Prepared] = deque()  # what DALI has taken and not yet given back, in order
        pipeline = self._build(_feed(prepared, in_flight))
        while True:
            try:
                outputs = pipeline.run(self._stream())
            except StopIteration:
                break
            except RuntimeError as error:
                redone = list(in_flight)
                in_flight.clear()
                self._leave_out_undecodable(redone, error)
                pipeline = self._build(_feed(chain(redone, prepared), in_flight))
                continue
            batch = in_flight.popleft()
            # the tensors share DALI's memory, which DALI keeps for as long as they live
            views = [from_dlpack(output.as_tensor()).permute(0, 3, 1, 2) for output in outputs]
            yield ViewBatch(blank_out(views, batch.decoded), batch.decoded, batch.reasons)
        if failures:
            raise failures[0]

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.task.device) if self.task.device.type == "cuda" else None

    def _prepare(self, batch: ViewInputs) -> _Prepared:
        parameters: list[npt.NDArray[np.float32]] = []
        for view in batch.views:
            sigma = np.maximum(view.blur_sigma_px, np.float32(_NO_BLUR_PX))
            gain, offset = view.gain_and_offset(self.task.mean, self.task.std)
            parameters += [np.ascontiguousarray(values) for values in (view.matrix, sigma, gain, offset)]
        encoded = [BLANK if image is None else image for image in batch.encoded]
        prepared = _Prepared(encoded, parameters, np.ones(len(encoded), np.bool_), {})
        sizes = zip(batch.rows["height"].tolist(), batch.rows["width"].tolist(), strict=True)
        for place, (image, (height, width)) in enumerate(zip(batch.encoded, sizes, strict=True)):
            reason = None if image is None else header_problem(image, height, width)
            if image is None or reason is not None:
                prepared.leave_out(place, reason)
        return prepared

    def _leave_out_undecodable(self, batches: Iterable[_Prepared], error: RuntimeError) -> None:
        """Decode the images of these batches one by one and leave out those that fail; raises RunFailed if none is."""
        found = 0
        if self._decode_alone(BLANK) is None:  # else it is the machine that fails, and no image
            for batch in batches:
                for place in np.flatnonzero(batch.decoded).tolist():
                    reason = self._decode_alone(batch.encoded[place])
                    if reason is not None:
                        batch.leave_out(place, reason)
                        found += 1
        if not found:
            raise RunFailed(f"DALI could not make the views of a batch: {_what_failed(error)}") from error

    def _decode_alone(self, encoded: npt.NDArray[np.uint8]) -> str | None:
        """Return why DALI does not decode an image, or None when it does."""
        pipeline = self._pipeline(max_batch=1, threads=1)
        with pipeline:
            images = fn.external_source(source=[[encoded]], batch=True, dtype=types.UINT8, ndim=1)
            pipeline.set_outputs(self._decoded(images))
        try:
            pipeline.run(self._stream())
        except RuntimeError as error:
            return _what_failed(error).replace(" sample #0 :", "")  # its place in a batch of one says nothing
        return None

    def _build(self, source: Iterator[tuple[Any, ...]]) -> Any:
        views_count = self.task.views_count
        pipeline = self._pipeline(self.task.max_batch, self.task.threads)
        with pipeline:
            encoded, *parameters = fn.external_source(
                source=source,
                num_outputs=1 + 4 * views_count,
                batch=True,
                dtype=[types.UINT8] + [types.FLOAT] * (4 * views_count),
                ndim=[1] + [2, 0, 0, 0] * views_count,
            )
            images = self._decoded(encoded)
            pipeline.set_outputs(*(self._view(images, *parameters[4 * i : 4 * i + 4]) for i in range(views_count)))
        pipeline.build()
        return pipeline

    def _pipeline(self, max_batch: int, threads: int) -> Any:
        device = self.task.device
        return Pipeline(
            batch_size=max_batch,
            num_threads=threads,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            prefetch_queue_depth=_IN_FLIGHT,
            exec_dynamic=True,
        )

    def _decoded(self, encoded: Any) -> Any:
        return fn.decoders.image(
            encoded,
            device="mixed" if self.task.device.type == "cuda" else "cpu",
            output_type=types.GRAY,  # ANY_DATA crashes DALI 2.4 on gray JPEGs
            adjust_orientation=False,
        )

    def _view(self, images: Any, matrix: Any, sigma: Any, gain: Any, offset: Any) -> Any:
        warped = fn.warp_affine(
            images,
            matrix=matrix,
            inverse_map=True,  # the matrix leads from the view to the image
            size=[self.task.size_px, self.task.size_px],
            interp_type=types.INTERP_LINEAR,
            dtype=types.FLOAT,  # faster than UINT8 here, and nothing is rounded
        )
        blurred = fn.gaussian_blur(warped, sigma=sigma)
        return fn.brightness_contrast(blurred, brightness=gain, brightness_shift=offset, dtype=types.FLOAT)


def _feed(prepared: Iterable[_Prepared], in_flight: deque[_Prepared]) -> Iterator[tuple[Any, ...]]:
    """Hand batches to DALI, noting which."""
    for batch in prepared:
        in_flight.append(batch)
        yield (batch.encoded, *batch.parameters)


def _what_failed(error: RuntimeError) -> str:
    """Take the one line that says it out of DALI's message: the one behind `encountered:`, where there is one."""
    _, marker, rest = str(error).partition("encountered:")
    return first_line(RuntimeError(rest)) if marker and rest.strip() else first_line(error)
