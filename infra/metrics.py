"""A run's numbers, written twice: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
import os
import socket
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image, scalar

from infra.append_file import AppendFile
from infra.files import write_atomic


class MetricsWriter:
    """Append scalars to `folder/metrics.jsonl` and to TensorBoard events under `folder/events`.

    A resumed run says how many steps its checkpoint has done: lines and events of later steps, which the interrupted
    run wrote before it ended, are dropped, so that every step stands there once. A full disk does not end the run.
    """

    def __init__(self, folder: Path, steps_done: int = 0) -> None:
        """Open both; raises UserError when the disk does not take them."""
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= steps_done]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = AppendFile(path)
        self._events = _Events(folder / "events", first_step=steps_done + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` (name -> number, names with units such as `speed/images_per_s`) at a step."""
        self._lines.write(json.dumps({"step": step, "time_s": round(time.time(), 3), **values}).encode() + b"\n")
        self._events.write([Event(step=step, summary=scalar(name, value)) for name, value in values.items()])

    def show(self, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Put an image (H, W, C) into TensorBoard."""
        self._events.write([Event(summary=image(name, pixels, dataformats="HWC"))])

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._events.close()


class _Events:
    """An event file of TensorBoard's. SummaryWriter writes it in a thread, which dies when the disk is full."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(folder / name)
        start = Event(step=first_step, session_log=SessionLog(status=SessionLog.START))  # what was later is dropped
        self.write([Event(file_version="brain.Event:2"), start])

    def write(self, events: list[Event]) -> None:
        records = BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        self._file.write(records.getvalue())

    def close(self) -> None:
        self._file.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of `folder/metrics.jsonl`, oldest first; a last line cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    values = []
    for number, line in enumerate(lines):
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise
    return values
