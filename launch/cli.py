"""`sternum COMMAND ...`: finds the command, and turns an error into one line and an exit code."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

from infra.errors import RunFailed, UserError
from infra.signals import Terminated
from infra.streams import open_standard_streams
from infra.urls import scrub
from infra.words import printable

# Environment variable: a file to which errors are also appended, so that `sternum supervise` can quote them.
ERRORS_FILE: Final = "STERNUM_ERRORS_FILE"

# Each command is a module of this folder. Only the one that runs is imported, so no command waits for another's
# libraries.
COMMANDS: Final = {
    "shard": "pack a dataset into shards with a manifest",
    "verify": "compare shards with their manifest",
    "audit": "find patients and images that datasets or splits share",
    "views": "draw samples next to their two augmented views",
    "pretrain": "pretrain a backbone on shards, or resume a run (several processes: torchrun -m launch.pretrain)",
    "supervise": "restart a pretraining command until its run is finished",
    "probe": "score the frozen backbones of a run on labeled shards",
    "embed": "write the features of images, in shards or files, as Parquet, CSV or NPZ",
    "predict": "score new images with a probe of a run",
    "table": "compare probed runs with the paper's Table III, in Markdown, CSV and LaTeX",
    "compare": "compare runs, or recipes with several seeds each, on the same patients",
    "report": "write one HTML page about a run",
    "export": "write the backbone of a run for torchvision, timm, transformers and onnxruntime",
    "doctor": "examine one machine, or all machines of a run, before it starts",
    "submit": "run a command on a cluster of SLURM, Kubernetes or Ray",
    "runs": "list the runs below a folder with their states",
    "demo": "run the whole pipeline on simulated radiographs in minutes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sternum`.

    Args:
        arguments: the words after `sternum`; None takes those of the process

    Returns:
        The exit code: 0; 1 for a failure or a check that found something; 2 for wrong usage or input; 130 for Ctrl-C;
        141 if the program that reads the output has ended; 143 for SIGTERM.
    """
    return run_command(_dispatch, list(sys.argv[1:] if arguments is None else arguments))


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"sternum {version('sternum')}\n")
        return 0
    return command_named(words[0])(words[1:])


def command_named(name: str) -> Callable[[Sequence[str]], int]:
    """Import a command, and return its function.

    Raises:
        UserError: if there is none of that name
    """
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; the commands are {', '.join(COMMANDS)}")
    command: Callable[[Sequence[str]], int] = importlib.import_module(f"launch.{name}").main
    return command


def run_command(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Call a command and return its exit code; an expected error becomes one line on standard error."""
    open_standard_streams()
    try:
        code = command(arguments)
        sys.stdout.flush()
    except (UserError, RunFailed) as error:
        return fail(error)
    except Terminated:
        sys.stderr.write("sternum: stopped by SIGTERM; the same command continues\n")
        return 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush succeeds
        return 128 + signal.SIGPIPE
    except OSError as error:
        if (expected := _in_one_line(error)) is None:
            raise
        return fail(expected)
    except KeyboardInterrupt:
        sys.stderr.write("sternum: interrupted\n")
        return 130
    return code


def _in_one_line(error: OSError) -> UserError | None:
    """Return an error for a file that the system refused and that no other message names; None if there is no file."""
    if error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}; check that it exists and that you may use it")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the output cannot be written: {error.strerror}; free some space")
    if "temporary directory" in str(error):  # tempfile found none
        return UserError(f"{error.strerror}; set TMPDIR to a folder that you may write to")
    return None


def fail(error: UserError | RunFailed) -> int:
    """Print an error as one line, with the rank if it is not the first, and return its exit code."""
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    line = printable(scrub(" ".join(str(error).split())))  # it may quote a file from someone else
    sys.stderr.write(f"sternum: error{where}: {line}\n")
    if ERRORS_FILE in os.environ:  # its folder is missing on other machines than the supervisor's
        with suppress(OSError), Path(os.environ[ERRORS_FILE]).open("a", errors="backslashreplace") as file:
            file.write(f"{line}\n")
    return error.exit_code


def split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words at the first `--` into a command's own words and the command line that follows."""
    words = list(arguments)
    dashes = words.index("--") if "--" in words else len(words)
    return words[:dashes], words[dashes + 1 :]


def _help() -> str:
    lines = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        "usage: sternum COMMAND ...\n\n"
        "Self-supervised pretraining for chest X-rays, from raw images to an honest probe.\n\n"
        f"commands:\n{lines}\n\n"
        "sternum COMMAND --help shows a command's options and examples. sternum --version shows the version.\n"
    )
