"""An append-only file that survives a full disk: no record is torn, and the run goes on."""

import os
from pathlib import Path
from types import TracebackType

from infra.log import say
from infra.storage.files import disk_errors


class AppendFile:
    """Appends each record completely or not at all.

    If the disk is full, records wait in memory and are written before the next one. Messages
    report when this starts and when it ends. Writes are unbuffered, so a killed process loses nothing that it wrote.

    Attributes:
        path: the file
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and create it and its folder if missing.

        Raises:
            UserError: if the file cannot be opened for writing
        """
        self.path = path
        self._waiting: list[bytes] = []
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        """Append a record now, or as soon as there is room."""
        was_full = bool(self._waiting)
        self._waiting.append(record)
        try:
            self._write_all()
        except OSError as error:
            if not was_full:
                say(f"ALARM: cannot write {self.path}: {error.strerror}; its lines wait in memory, and the run goes on")
            return
        if was_full:
            say(f"{self.path} is complete again")

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
        """Close the file. Records that still do not fit are lost, and a message says how many."""
        try:
            self._write_all()
        except OSError as error:
            say(f"ALARM: the last {len(self._waiting)} lines of {self.path} are lost: {error.strerror}")
        self._file.close()

    def __enter__(self) -> "AppendFile":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
