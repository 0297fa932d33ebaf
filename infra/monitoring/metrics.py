"""The metrics of a run, written as `metrics.jsonl` for programs and as TensorBoard events for people."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard.summary import custom_scalars, histogram_raw, image, scalar

from infra.errors import RunFailed
from infra.log import say
from infra.monitoring.event_file import EventFile
from infra.storage.append_file import AppendFile
from infra.storage.files import read_regular, write_atomic
from infra.storage.json_files import BadJson, decode_json, encode_line

_NAME: Final = "metrics.jsonl"
# Earlier versions wrote numbers that are not finite as Python does, which is no JSON.
_NOT_FINITE: Final = re.compile(rb"(?<=: )(?:NaN|-?Infinity)(?=[,}])")

# Tags of earlier versions.
_RENAMED: Final = {
    "contrast/top1": "health/top1_share",
    "contrast/top5": "health/top5_share",
    "contrast/alignment": "health/projection_alignment",
    "contrast/uniformity": "health/projection_uniformity",
    "contrast/deviation": "health/projection_deviation",
    "train/steps_skipped": "run/steps_skipped",
}


class Histogram(NamedTuple):
    """How often values occur.

    Attributes:
        edges: of the bins, in ascending order, one more than bins
        counts: values in each bin
    """

    edges: Sequence[float]
    counts: Sequence[float]


class MetricsWriter:
    """Appends scalars to `folder/metrics.jsonl` and to TensorBoard events in `folder/events`.

    A resumed run repeats the steps after its checkpoint. The lines and events that the interrupted run wrote for these
    steps are dropped, so every step appears once. A full disk does not end the run.

    Attributes:
        last_line: the last line that an earlier start left; None if there is none
        earlier_starts: number of earlier starts, each of which has left a file of events
    """

    def __init__(self, folder: Path, steps_done: int = 0) -> None:
        """Open both files.

        Args:
            folder: the run folder
            steps_done: steps of the checkpoint from which the run resumes

        Raises:
            UserError: if a file cannot be written
        """
        path = folder / _NAME
        kept = [line for line in read_metrics(folder) if line["step"] <= steps_done]
        write_atomic(path, b"".join(map(encode_line, kept)))
        self.last_line = kept[-1] if kept else None
        self.earlier_starts = len(list((folder / "events").glob("events.out.tfevents.*")))
        self._lines = AppendFile(path)
        self._events = EventFile(folder / "events", first_step=steps_done + 1)

    def write(self, step: int, values: Mapping[str, float], histograms: Mapping[str, Histogram] | None = None) -> None:
        """Record numbers and distributions by tag at a step; tags include units, such as `speed/images_per_s`.

        `metrics.jsonl` gets the numbers, TensorBoard both.
        """
        self._lines.write(encode_line({"step": step, "time_s": round(time.time(), 3), **values}))
        summaries = [scalar(name, value) for name, value in values.items()]
        summaries += [_histogram(name, histogram) for name, histogram in (histograms or {}).items()]
        self._events.write(step, summaries)

    def show_together(self, chart: str, tags: Sequence[str]) -> None:
        """Draw several tags in one chart of TensorBoard's page "Custom scalars"."""
        self._events.write(0, [custom_scalars({chart: {chart: ("Multiline", [*tags])}})])

    def show(self, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Show an image in TensorBoard: (H, W, C)."""
        self._events.write(0, [image(name, pixels, dataformats="HWC")])

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._events.close()


def _histogram(name: str, histogram: Histogram) -> Any:
    edges, counts = np.asarray(histogram.edges), np.asarray(histogram.counts)
    centers = (edges[1:] + edges[:-1]) / 2
    total, squares = float(counts @ centers), float(counts @ centers**2)
    limits = edges[1:].tolist()  # TensorBoard counts a bin up to its limit
    return histogram_raw(name, edges[0], edges[-1], counts.sum(), total, squares, limits, counts.tolist())


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of `folder/metrics.jsonl`, oldest first, by today's tags; a number that is not finite is NaN.

    A last line that a crash cut off is left out. So is any damaged line, with a warning.

    Raises:
        RunFailed: if the file cannot be read
        UserError: if it is not a regular file
    """
    path = folder / _NAME
    try:
        *lines, unfinished = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFailed(f"{path} cannot be read: {error.strerror}; repair the disk, or remove the file") from error
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(_decode(line))
        except BadJson as error:
            say(f"warning: line {number} of {path} is damaged ({error}) and left out")
    with suppress(BadJson):  # whole but for its end, as an editor leaves it
        values.append(_decode(unfinished))
    return values


def _decode(line: bytes) -> dict[str, float]:
    values = decode_json(_NOT_FINITE.sub(b"null", line), dict[str, int | float | None])
    if values.get("step") is None:
        raise BadJson("it has no step")
    return {_RENAMED.get(name, name): float("nan") if value is None else value for name, value in values.items()}
