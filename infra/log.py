"""Messages and progress on standard error: bars on a terminal, plain lines in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def say(message: str) -> None:
    """Print one line for the user on standard error, above any progress bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def progress(items: Iterable[T], label: str, total: int | None = None, unit: str = "image") -> Iterator[T]:
    """Yield `items` and show a progress bar on standard error if that is a terminal.

    Args:
        items: the items
        label: text in front of the bar
        total: number of items; needed if `items` has no length
        unit: name of one item
    """
    yield from tqdm(
        items, desc=label, total=total, unit=unit, unit_scale=True, disable=None, file=sys.stderr, leave=False
    )
