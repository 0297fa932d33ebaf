"""`sternum COMMAND ...`: finds the command, and turns errors into one line and an exit code."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

from infra.errors import RunFailed, UserError

# An environment variable: the file to which errors are appended as well, for `sternum supervise` to quote.
ERRORS_FILE: Final = "STERNUM_ERRORS_FILE"

# Each command is a module of this folder, imported when it is called, so that none waits for another's libraries.
COMMANDS: Final = {
    "shard": "pack a dataset into shards and a manifest",
    "verify": "re-read every shard against the manifest",
    "audit": "find patients and images shared between sets or splits",
    "views": "show samples beside their two views",
    "pretrain": "pretrain a backbone on shards, or resume a run (several processes: torchrun -m launch.pretrain)",
    "supervise": "run a pretraining command again and again until the run is finished",
    "probe": "score the frozen backbones of a run on labelled shards",
    "table": "set the paper's Table III beside ours, in Markdown, CSV and LaTeX",
    "report": "write one HTML page about a run",
    "submit": "run sternum probe as a job of a Ray cluster",
    "demo": "all of it on simulated radiographs, on this machine, in minutes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sternum` with these arguments (those of the process by default); returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"sternum {version('sternum')}\n")
        return 0
    if words[0] not in COMMANDS:
        return fail(UserError(f"unknown command {words[0]!r}; the commands are {', '.join(COMMANDS)}"))
    command = importlib.import_module(f"launch.{words[0]}")
    return guarded(command.main, words[1:])


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Call a command; an error that has a way out becomes one line on standard error and its exit code."""
    try:
        return command(arguments)
    except (UserError, RunFailed) as error:
        return fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("sternum: interrupted\n")
        return 130


def fail(error: UserError | RunFailed) -> int:
    """Print an error as one line, with the rank that met it unless that is the first; returns its exit code."""
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    line = " ".join(str(error).split())
    sys.stderr.write(f"sternum: error{where}: {line}\n")
    if ERRORS_FILE in os.environ:
        with suppress(OSError), Path(os.environ[ERRORS_FILE]).open("a") as file:  # on another machine there is none
            file.write(f"{line}\n")
    return error.exit_code


def _help() -> str:
    rows = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
    return (
        "usage: sternum COMMAND ...\n\n"
        "Self-supervised pretraining for chest X-rays, from raw images to an honest probe.\n\n"
        f"commands:\n{rows}\n\n"
        "sternum COMMAND --help shows a command's options and examples; sternum --version the version.\n"
    )
