"""A TensorBoard event file, without SummaryWriter, whose thread dies when the disk is full."""

import os
import socket
import time
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from types import TracebackType

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from infra.storage.append_file import AppendFile


class EventFile:
    """Appends to a new event file in a folder; a full disk does not end the run."""

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        """Create the file.

        Args:
            folder: a run of TensorBoard; missing folders are created
            first_step: TensorBoard drops this step and later ones of older files in the folder; none if it is None

        Raises:
            UserError: if the file cannot be written
        """
        # TensorBoard reads the files of a folder by name, so the name starts with the time.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(folder / name)
        self._append([Event(file_version="brain.Event:2")])
        if first_step is not None:
            self._append([Event(step=first_step, session_log=SessionLog(status=SessionLog.START))])

    def write(self, step: int, summaries: Iterable[Summary]) -> None:
        """Append summaries at a step."""
        self._append([Event(step=step, summary=summary) for summary in summaries])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, events: list[Event]) -> None:
        records = BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        self._file.write(records.getvalue())
