"""The command-line tools of clusters: sbatch and kubectl."""

import shutil
import subprocess
from collections.abc import Sequence

from infra.errors import RunFailed, UserError


def run_tool(command: Sequence[str], text: str) -> str:
    """Give a text to a tool on its standard input, and return what it prints, without white space at the ends.

    Raises:
        UserError: if the tool is not installed
        RunFailed: if it fails; the message is its own, in one line
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]} is not installed on this machine; submit from one that has it, or write the job with "
            f"--dry_run=true > FILE and give FILE to {command[0]} there"
        )
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise RunFailed(f"{command[0]} refused the job: {why}")
    return done.stdout.strip()
