"""The command that `sternum submit` runs elsewhere, read here: its mistakes, and the paths that it names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from infra.configuration.config import read_command
from infra.configuration.schema import options_of
from infra.errors import MissingHere
from infra.log import say
from infra.urls import Location
from launch.cli import command_named


@dataclass(frozen=True)
class Paths:
    """The paths and URLs that a command line names, as its user wrote them.

    Attributes:
        written: folders, files and object stores that the command writes
        read: those that it reads
    """

    written: list[str]
    read: list[str]


def paths_of(command: str, arguments: Sequence[str], *, is_elsewhere: bool) -> Paths:
    """Read a command line as the command itself would, and return the paths in it.

    Args:
        command: name of the command
        arguments: the words after it
        is_elsewhere: whether it runs on machines with other files and packages than this one

    Raises:
        UserError: for the mistake that the command would refuse
    """
    try:
        config = read_command(command_named(command), arguments)
    except MissingHere as error:
        if not is_elsewhere:
            raise
        say(f"warning: the options of sternum {command} are not checked, because {error}")
        return Paths([], [])
    mirror = getattr(getattr(config, "checkpoints", None), "mirror", None)
    outputs = [getattr(config, name, None) for name in ("run_folder", "out")]
    written = [str(location) for location in (*outputs, mirror) if location is not None]
    files = [word.removeprefix("--config=") for word in arguments if word.startswith("--config=")]
    read = [*(file for file in files if "/" in file or "." in file), *map(str, _chosen(config))]
    return Paths(written, [path for path in dict.fromkeys(read) if path not in written])


def _chosen(config: Any) -> Iterator[Location]:
    """Yield the paths and URLs among the values of a configuration, except those that are its defaults."""
    for key, option in options_of(type(config)).items():
        value = reduce(getattr, key.split("."), config)
        if value in (None, option.default) or not _takes_paths(option.type):
            continue
        yield from value if isinstance(value, list | tuple) else [value]


def _takes_paths(annotation: Any) -> bool:
    return annotation is Path or any(map(_takes_paths, get_args(annotation)))
