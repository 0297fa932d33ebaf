"""The metrics of a run, written as `metrics.jsonl` for programs and as TensorBoard events for people."""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard.summary import image, scalar

from infra.append_file import AppendFile
from infra.errors import RunFailed
from infra.event_file import EventFile
from infra.files import read_regular, write_atomic
from infra.json_files import BadJson, decode_json, encode_line
from infra.log import say

_NAME: Final = "metrics.jsonl"
# Earlier versions wrote numbers that are not finite as Python does, which is no JSON.
_NOT_FINITE: Final = re.compile(rb"(?<=: )(?:NaN|-?Infinity)(?=[,}])")


class MetricsWriter:
    """Appends scalars to `folder/metrics.jsonl` and to TensorBoard events in `folder/events`.

    A resumed run repeats the steps after its checkpoint. The lines and events that the interrupted run wrote for these
    steps are dropped, so every step appears once. A full disk does not end the run.
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
        write_atomic(path, b"".join(encode_line(line) for line in read_metrics(folder) if line["step"] <= steps_done))
        self._lines = AppendFile(path)
        self._events = EventFile(folder / "events", first_step=steps_done + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name at a step; names include units, such as `speed/images_per_s`."""
        self._lines.write(encode_line({"step": step, "time_s": round(time.time(), 3), **values}))
        self._events.write(step, [scalar(name, value) for name, value in values.items()])

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


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of `folder/metrics.jsonl`, oldest first; a number that is not finite is NaN.

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
    return {name: float("nan") if value is None else value for name, value in values.items()}
