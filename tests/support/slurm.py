"""A SLURM cluster of a stand-in's tools, as a test sees it."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.launchers import LaunchedCommand, launch
from tests.support.slurm_tools import FOLDER, JOB, TOOLS

Node = tuple[str, list[str]]  # name of a machine, and the words that run a command on it


class Slurm:
    """A cluster that runs one job."""

    def __init__(self, folder: Path, nodes: Sequence[Node]) -> None:
        self._folder = folder
        self.tools = folder / "bin"
        self.tools.mkdir(parents=True)
        (folder / "nodes.json").write_text(json.dumps([{"name": name, "on": on} for name, on in nodes]))
        for name in TOOLS:
            tool = self.tools / name
            tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.support.slurm_tools {name} "$@"\n')
            tool.chmod(0o755)
        self.environment = {
            "PATH": f"{self.tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            FOLDER: str(folder),
        }

    def start(self, log: Path, restarts: int = 0, task: int = 0) -> AbstractContextManager[LaunchedCommand]:
        """Run the submitted script as the first node does, and kill all its processes when the block ends.

        Args:
            log: file for the output
            restarts: how often the job was requeued
            task: task of the job array, which scripts without one ignore
        """
        of_job = {"SLURM_JOB_ID": str(JOB), "SLURM_JOB_NODELIST": "all", "SLURM_RESTART_COUNT": str(restarts)}
        of_job |= {"SLURM_ARRAY_JOB_ID": str(JOB), "SLURM_ARRAY_TASK_ID": str(task)}
        return launch(["bash", str(self._folder / "script.sh")], log, **self.environment, **of_job)

    def requeued(self) -> list[str]:
        """Return the jobs that the script has requeued."""
        path = self._folder / "requeued"
        return path.read_text().split() if path.exists() else []
