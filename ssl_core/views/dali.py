"""The view executor on NVIDIA DALI: one decode for each image; one warp, one blur and one linear map for each view.

DALI keeps no random state and no position: it gets bytes and parameters and returns pixels, bit for bit the same at
every batch size and thread count. With a GPU, decoding is `mixed` and everything after it runs on the GPU.

An image that DALI cannot decode ends the pipeline with all batches in flight. So batches are kept until they come out,
and a new pipeline makes them again without the broken images.
"""

import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types
from torch.utils.dlpack import from_dlpack
from typing_extensions import override

from infra.arrays import Bool, UInt8
from infra.errors import RunFailed
from sharding.reading.stream import BLANK
from ssl_core.views.header_check import header_problem
from ssl_core.views.parameters import GRAY, Steps, ViewParameters
from ssl_core.views.spec import SECOND
from ssl_core.views.task import ViewBatch, ViewExecutor, ViewInputs, blank_out, first_line, until_failure

_IN_FLIGHT: Final = 3  # the batch in use and two more
# A Gaussian this narrow is exactly the identity (its outer taps underflow to 0). Blurring all samples takes no longer
# than blurring a part of them (conditional execution), and gives the same bits.
_NO_BLUR_PX: Final = 1e-3
# Type and dimensions of parameters; others are numbers in fp32.
_KINDS: Final = {
    "matrix": (types.FLOAT, 2),
    "is_reduced": (types.BOOL, 0),
    "reduced": (types.FLOAT, 1),
    "anchor": (types.FLOAT, 1),
    "shape": (types.FLOAT, 1),
}


@dataclass
class _Prepared:
    """A batch as inputs of DALI, with BLANK for each image that must not be decoded.

    Attributes:
        encoded: the files of the N samples; if second views may show siblings, then N more: a sample's sibling or BLANK
        has_sibling: (N,), whether the second view shows a sibling
        parameters: those of each view, one view after the other, in the order of `_names`
        decoded: (N,), False for blanks
        reasons: why an image is not decoded, by its position in `encoded`
        has_failed: whether it was in flight when a pipeline failed
    """

    encoded: list[UInt8]
    has_sibling: Bool
    parameters: list[npt.NDArray[Any]]
    decoded: Bool
    reasons: dict[int, str]
    has_failed: bool = False

    @property
    def positions(self) -> list[int]:
        """The positions in `encoded` of samples that are not left out."""
        return [position for position in range(len(self.encoded)) if self.decoded[position % len(self.decoded)]]

    def leave_out(self, position: int, reason: str | None) -> None:
        """Make a sample blank, because the file at this position, its own or its sibling's, must not be decoded."""
        item = position % len(self.decoded)
        for place in range(item, len(self.encoded), len(self.decoded)):
            self.encoded[place] = BLANK
        self.decoded[item] = False
        if reason is not None:
            self.reasons[position] = reason

    def inputs(self) -> tuple[Any, ...]:
        """Return what DALI gets."""
        count = len(self.decoded)
        if len(self.encoded) == count:
            return (self.encoded, *self.parameters)
        return (self.encoded[:count], self.encoded[count:], self.has_sibling, *self.parameters)


class DaliExecutor(ViewExecutor):
    """Runs on the task's device: the CPU or one GPU."""

    @override
    def run(self, batches: Iterator[ViewInputs]) -> Generator[ViewBatch, None, None]:
        failures: list[Exception] = []  # of `batches`, raised once the batches in flight have come out
        prepared = map(self._prepare, until_failure(batches, failures))
        in_flight: deque[_Prepared] = deque()  # batches inside DALI, in order
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
            # the tensors share DALI's memory, which DALI keeps while they exist
            views = [from_dlpack(output.as_tensor()).permute(0, 3, 1, 2) for output in outputs]
            yield ViewBatch(blank_out(views, batch.decoded), batch.decoded, batch.reasons)
        if failures:
            raise failures[0]

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.task.device) if self.task.device.type == "cuda" else None

    def _prepare(self, batch: ViewInputs) -> _Prepared:
        parameters: list[npt.NDArray[Any]] = []
        for view in batch.views:
            values = self._values(view)
            parameters += [np.ascontiguousarray(values[name]) for name in _names(self.task.steps)]
        count = len(batch.encoded)
        has_sibling = np.zeros(count, np.bool_)
        has_sibling[batch.siblings.items] = True
        encoded = [BLANK] * (count * (1 + self.task.siblings))
        prepared = _Prepared(encoded, has_sibling, parameters, np.ones(count, np.bool_), {})
        positions = [*range(count), *(count + batch.siblings.items).tolist()]
        files, rows = [*batch.encoded, *batch.siblings.encoded], np.concatenate([batch.rows, batch.siblings.rows])
        heights, widths = rows["height"].tolist(), rows["width"].tolist()
        for position, file, height, width in zip(positions, files, heights, widths, strict=True):
            reason = None if file is None else header_problem(file, height, width)
            if file is None or reason is not None:
                prepared.leave_out(position, reason)
            elif prepared.decoded[position % count]:
                encoded[position] = file
        return prepared

    def _values(self, view: ViewParameters) -> dict[str, npt.NDArray[Any]]:
        """Return the parameters of a view by the names that `_view` takes."""
        gain, offset = view.gain_and_offset(self.task.mean, self.task.std)
        return {
            "matrix": view.matrix,
            "sigma": np.maximum(view.blur_sigma_px, np.float32(_NO_BLUR_PX)),
            "gain": gain,
            "offset": offset,
            "is_reduced": view.reduced_px[:, 0] > 0,
            "reduced": view.reduced_px,
            "gamma": view.gamma,
            "contrast": view.contrast,
            "brightness": view.brightness,
            "anchor": view.erased_px[:, :2],
            "shape": view.erased_px[:, 2:],
        }

    def _leave_out_undecodable(self, batches: Sequence[_Prepared], error: RuntimeError) -> None:
        """Leave out images of these batches that do not decode; RunFailed if all do.

        DALI names the position of the image, but not the batch. If a pipeline over the same batches fails again, they
        hold several such images, and all are looked at.
        """
        places = [(batch, position) for batch in batches for position in batch.positions]
        named = re.search(r"sample #(\d+)", str(error))
        again = any(batch.has_failed for batch in batches)
        suspects = [] if again or not named else [place for place in places if place[1] == int(named[1])]
        machine_works = not self._undecodable([BLANK])
        if not (machine_works and (self._leave_out(suspects) or self._leave_out(places))):
            raise RunFailed(f"DALI could not make the views of a batch: {_reason(error)}") from error
        for batch in batches:
            batch.has_failed = True

    def _leave_out(self, places: Sequence[tuple[_Prepared, int]]) -> bool:
        """Leave out the images at these places that do not decode; return whether there is one."""
        reasons = self._undecodable([batch.encoded[position] for batch, position in places])
        for number, reason in reasons.items():
            batch, position = places[number]
            batch.leave_out(position, reason)
        return bool(reasons)

    def _undecodable(self, images: Sequence[UInt8]) -> dict[int, str]:
        """Return why images do not decode, by position. One pipeline decodes one image after the other until one fails.

        With a GPU, building a pipeline takes as long as decoding hundreds of images.
        """
        reasons: dict[int, str] = {}
        position = 0
        while position < len(images):
            pipeline = Pipeline(**self._resources(max_batch=1, threads=1, in_flight=1))
            with pipeline:
                source = iter([[image]] for image in images[position:])
                decoded = self._decoded(
                    fn.external_source(source=source, num_outputs=1, dtype=[types.UINT8], ndim=[1])[0]
                )
                pipeline.set_outputs(decoded)
            try:
                while position < len(images):
                    pipeline.run(self._stream())
                    position += 1
            except RuntimeError as error:
                reasons[position] = _reason(error).replace(" sample #0 :", "")  # the position in a batch of one
                position += 1
        return reasons

    def _build(self, source: Iterator[tuple[Any, ...]]) -> Any:
        task, names = self.task, _names(self.task.steps)
        kinds = [(types.UINT8, 1)] + [(types.UINT8, 1), (types.BOOL, 0)] * task.siblings
        kinds += [_KINDS.get(name, (types.FLOAT, 0)) for name in names] * len(task.sizes_px)
        dtypes, ndims = map(list, zip(*kinds, strict=True))

        @pipeline_def(  # type: ignore[untyped-decorator]
            enable_conditionals=task.siblings or task.steps.antialias,
            **self._resources(task.max_batch, task.threads, _IN_FLIGHT),
        )
        def graph() -> Any:
            encoded, *inputs = fn.external_source(
                source=source, num_outputs=len(dtypes), batch=True, dtype=dtypes, ndim=ndims
            )
            images = second = self._decoded(encoded)
            if task.siblings:
                siblings, has_sibling, *inputs = inputs
                if has_sibling:  # noqa: SIM108 - DALI looks at each sample on its own, in statements only
                    second = self._decoded(siblings)
                else:
                    second = images
            views = []
            for view, size_px in enumerate(task.sizes_px):
                of_view = {name: inputs[view * len(names) + place] for place, name in enumerate(names)}
                views.append(self._view(second if view == SECOND else images, size_px, **of_view))
            return tuple(views)

        pipeline = graph()
        pipeline.build()
        return pipeline

    def _resources(self, max_batch: int, threads: int, in_flight: int) -> dict[str, Any]:
        device = self.task.device
        return {
            "batch_size": max_batch,
            "num_threads": threads,
            "device_id": (device.index or 0) if device.type == "cuda" else None,
            "prefetch_queue_depth": in_flight,
            "exec_dynamic": True,
        }

    def _decoded(self, encoded: Any) -> Any:
        return fn.decoders.image(
            encoded,
            device="mixed" if self.task.device.type == "cuda" else "cpu",
            output_type=types.GRAY,  # ANY_DATA crashes DALI 2.4 on gray JPEGs
            adjust_orientation=False,
        )

    def _view(self, images: Any, size_px: int, *, matrix: Any, sigma: Any, **more: Any) -> Any:
        steps = self.task.steps
        if steps.antialias:
            if more["is_reduced"]:
                images = fn.resize(
                    images, size=more["reduced"], interp_type=types.INTERP_LINEAR, antialias=True, dtype=types.FLOAT
                )
            else:  # a third of the time of a resize to the same size
                images = fn.cast(images, dtype=types.FLOAT)
        warped = fn.warp_affine(
            images,
            matrix=matrix,
            inverse_map=True,  # the matrix maps the view to the image
            size=[size_px, size_px],
            interp_type=types.INTERP_LINEAR,
            dtype=types.FLOAT,  # faster than UINT8 here, and nothing is rounded
        )
        view = fn.gaussian_blur(warped, sigma=sigma)
        if steps.are_linear:
            gain, offset = more["gain"], more["offset"]
            view = fn.brightness_contrast(view, brightness=gain, brightness_shift=offset, dtype=types.FLOAT)
        else:
            view = (_toned(view / 255, steps, **more) - self.task.mean) / self.task.std
        return fn.erase(view, anchor=more["anchor"], shape=more["shape"], axis_names="WH") if steps.erase else view


def _names(steps: Steps) -> list[str]:
    """Name the parameters that each view takes."""
    names = ["matrix", "sigma"]
    names += ["gain", "offset"] if steps.are_linear else ["contrast", "brightness"]
    names += ["is_reduced", "reduced"] * steps.antialias + ["gamma"] * steps.gamma
    return names + ["anchor", "shape"] * steps.erase


def _toned(values: Any, steps: Steps, *, contrast: Any, brightness: Any, gamma: Any = None, **_: Any) -> Any:
    """Change values from 0 to 1 by gamma, contrast and brightness."""
    if steps.gamma:
        values = math.pow(values, gamma)
    pivot = fn.reductions.mean(values) if steps.contrast_about_mean else GRAY
    values = pivot + contrast * (values - pivot)
    values = math.clamp(values, 0.0, 1.0) if steps.clip else values
    values = brightness * values
    return math.clamp(values, 0.0, 1.0) if steps.clip else values


def _feed(prepared: Iterable[_Prepared], in_flight: deque[_Prepared]) -> Iterator[tuple[Any, ...]]:
    """Pass batches to DALI and append them to `in_flight`."""
    for batch in prepared:
        in_flight.append(batch)
        yield batch.inputs()


def _reason(error: RuntimeError) -> str:
    """Return the telling line of DALI's message: the one after `encountered:` if there is one."""
    _, marker, rest = str(error).partition("encountered:")
    return first_line(RuntimeError(rest)) if marker and rest.strip() else first_line(error)
