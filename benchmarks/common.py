"""What the benchmarks share: the machine, what is installed on it, and a table of text."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any


def machine(*distributions: str) -> dict[str, Any]:
    """Describe this machine and the versions of these distributions; None for one that is not installed."""
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in distributions},
    }


def installed(module: str) -> bool:
    """Say whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it would lie in
        return False


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text, numbers to the right; a row (name, remark) has no figures, and takes the room it needs."""
    lines = [header, *rows]
    columns = zip(*(row for row in lines if len(row) == len(header)), strict=True)
    widths = [max(map(len, column)) for column in columns]
    widths[0] = max(len(row[0]) for row in lines)
    return "\n".join(_line(row, widths).rstrip() for row in lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name = f"  {row[0]:<{widths[0]}}"
    if len(row) != len(widths):
        return "  ".join([name, *row[1:]])
    return "  ".join([name, *(f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def one_line(error: Exception) -> str:
    """Return what an exception says, as a line that fits a table."""
    return shorten(f"{type(error).__name__}: {error}", 200)
