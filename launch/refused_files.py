"""The message about files that a command could not use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.errors import RunFailed
from infra.log import say
from infra.words import counted
from sharding.format.manifest import Rejection

_SHOWN: Final = 20


def refusal(refused: Sequence[Rejection], listed: Path | None) -> RunFailed:
    """Name the first refused files, one line each, and return the error that counts all of them.

    Args:
        refused: the files, at least one
        listed: the file that lists them; None if the output has them in line
    """
    for item in refused[:_SHOWN]:
        say(f"refused: {item.path}: {item.reason}")
    where = listed or "the output"
    return RunFailed(
        f"refused {counted(len(refused), 'file')}, which {where} lists with the reasons; the others are done"
    )
