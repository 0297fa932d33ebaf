"""The standard streams of a process."""

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Final

_NOWHERE: Final = Path(os.devnull)


def open_standard_streams() -> None:
    """Make all three standard streams usable, whatever the process was started with.

    A closed one leads to /dev/null. Otherwise the next file that opens would get its number, and receive what libraries
    print. Characters that a stream cannot encode are escaped.
    """
    for descriptor in range(3):
        if not _is_open(descriptor):
            os.open(_NOWHERE, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or _NOWHERE.open()
    sys.stdout = sys.stdout or _NOWHERE.open("w")
    sys.stderr = sys.stderr or _NOWHERE.open("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(descriptor: int) -> bool:
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False
