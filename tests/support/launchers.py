"""Pretraining started by real launchers: `torchrun` or `deepspeed`, alone or under `sternum supervise`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

from infra.configuration import config as configuration
from infra.monitoring.metrics import read_metrics
from ssl_core.pretraining.config import PretrainConfig

TORCHRUN = [str(Path(sys.executable).with_name("torchrun"))]
DEEPSPEED = [str(Path(sys.executable).with_name("deepspeed"))]
SEPARATE_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # `sternum supervise` sets it itself
_MARK = "STERNUM_TEST"


def pretrain_arguments(config: PretrainConfig) -> list[str]:
    """Write the configuration next to the run folder, and return the module and its arguments."""
    path = config.run_folder.with_name(f"{config.run_folder.name}.yaml")
    configuration.save(config, path)
    return ["launch.pretrain", f"--config={path}"]


def torchrun_command(config: PretrainConfig, *options: str) -> list[str]:
    """Return a command that pretrains in two processes on this machine."""
    return [*TORCHRUN, "--standalone", "--nproc-per-node=2", *options, "-m", *pretrain_arguments(config)]


def supervise_command(config: PretrainConfig, command: Sequence[str], *options: str) -> list[str]:
    """Return a command that runs `command` under `sternum supervise`."""
    supervise = [sys.executable, "-m", "launch", "supervise", str(config.run_folder), *options]
    return [*supervise, "--pause_s=0.5", "--", *command]


class LaunchedCommand:
    """A running command with all its descendants, even those with another parent or in another process group."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self._mark = uuid4().hex
        variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", _MARK: self._mark}
        with log.open("a") as file:
            self.process = subprocess.Popen(command, env=os.environ | variables | environment, stdout=file, stderr=file)

    def all(self, *words: str) -> list[psutil.Process]:
        """Return the live processes whose command lines hold all these words, oldest first."""
        matching = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                living = process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self._mark
                if living and all(word in process.cmdline() for word in words):
                    matching.append((process.create_time(), process.pid, process))
        return [process for *_, process in sorted(matching)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the live ranks, ordered by rank."""
        ranks = []
        for process in self.all("launch.pretrain"):
            with suppress(psutil.Error):
                if "RANK" in process.environ():
                    ranks.append((int(process.environ()["RANK"]), process.pid, process))
        return [process for *_, process in sorted(ranks)]

    def wait_for_step(self, run: Path, step: int, timeout_s: float = 150.0) -> None:
        """Wait until the metrics have a line of this step or a later one."""
        until_s = time.monotonic() + timeout_s
        while not any(line["step"] >= step for line in read_metrics(run)):
            assert self.process.poll() is None, f"the command ended before step {step}: {self.output()}"
            assert time.monotonic() < until_s, f"the run did not reach step {step} in {timeout_s} s: {self.output()}"
            time.sleep(0.05)

    def end(self, timeout_s: float = 240.0) -> int:
        """Wait for the command and return its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the command did not end in {timeout_s} s: {self.output()}") from None

    def output(self) -> str:
        """Return what all processes have printed so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill all live processes of this command."""
        left = self.all()
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=30)
        self.process.wait(30)


@contextmanager
def launch(command: Sequence[str], log: Path, **environment: str) -> Iterator[LaunchedCommand]:
    """Start a command, and kill all its processes when the block ends."""
    started = LaunchedCommand(command, log, environment)
    try:
        yield started
    finally:
        started.kill()
