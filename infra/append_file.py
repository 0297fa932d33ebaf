"""A file that grows record by record, and that a full disk neither tears nor ends."""

import os
from pathlib import Path
from types import TracebackType

from infra.files import disk_errors
from infra.log import say


class AppendFile:
    """Appends records, each of them whole or not at all.

    What the disk does not take waits in memory and goes before the next record; that, and when there is room again, is
    said. Unbuffered, so that a killed process has left what it wrote.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, made where it is missing; raises UserError when the disk does not take it."""
        self.path = path
        self._waiting: list[bytes] = []
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        """Append a record, now or as soon as there is room."""
        waited = len(self._waiting)
        self._waiting.append(record)
        try:
            self._write_all()
        except OSError as error:
            if not waited:
                say(f"ALARM: {self.path} takes nothing more: {error.strerror}; its lines wait, and the run goes on")
            return
        if waited:
            say(f"{self.path} has all its lines again")

    def _write_all(self) -> None:
        while self._waiting:
            size_bytes = os.fstat(self._file.fileno()).st_size
            content = memoryview(self._waiting[0])
            try:
                while content:
                    content = content[self._file.write(content) :]
            except OSError:
                self._file.truncate(size_bytes)
                raise
            self._waiting.pop(0)

    def close(self) -> None:
        """Close the file; what still waits is lost, loudly."""
        try:
            self._write_all()
        except OSError as error:
            say(f"ALARM: the last {len(self._waiting)} lines of {self.path} are lost: {error.strerror}")
        self._file.close()

    def __enter__(self) -> "AppendFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
