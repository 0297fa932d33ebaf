"""Helpers of all benchmarks: a description of the machine, a check for installed packages, and text tables."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from tabulate import tabulate


def machine(*distributions: str) -> dict[str, Any]:
    """Describe this machine, with the versions of these distributions (None if not installed)."""
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in distributions},
    }


def installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table with its figures to the right; rows (name, remark) without figures follow as lines."""
    figures = [row for row in rows if len(row) == len(header)]
    align = ("left", *["right"] * (len(header) - 1)) if figures else None
    lines = tabulate(figures, header, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()
    remarks = [": ".join(row) for row in rows if len(row) != len(header)]
    return "\n".join(f"  {line}".rstrip() for line in [*lines, *remarks])


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
    """Return an exception as a line that fits a table."""
    return shorten(f"{type(error).__name__}: {error}", 200)
