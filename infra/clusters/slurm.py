"""SLURM: a batch script that runs a Sternum command, and `sbatch`."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final, Literal

from infra.clusters.job import Job, doctor_words, template
from infra.clusters.tools import run_tool
from infra.configuration.options import key, require_positive, setting
from infra.errors import require

_SEED: Final = "{seed}"
_FRACTION: Final = "{fraction}"
_MOST_SIGNAL_S: Final = 65535
_RESERVED: Final = "--(job-name|nodes|ntasks|ntasks-per-node|time|signal|array|requeue|open-mode|output)\\b"


@dataclass(frozen=True)
class SlurmConfig:
    """SLURM.

    Args:
        partition: partition of the nodes, the site's default if null
        account: account to charge, the user's default if null
        hours: time limit of one start; a command that is not finished is requeued and continues
        stop_before_s: seconds before the time limit at which the command saves and stops
        sbatch: further options of sbatch, such as [--qos=long,--constraint=h100]
        launcher: what starts the ranks of a pretraining; deepspeed needs no ssh between the nodes here
        seeds: run the command once for each seed, as a job array; {seed} in the command stands for it
        fractions: run the command once for each fraction; {fraction} in the command stands for it
    """

    partition: str | None = None
    account: str | None = None
    hours: float = 24.0
    stop_before_s: int = 300
    sbatch: list[str] = field(default_factory=list)
    launcher: Literal["torchrun", "deepspeed"] = "torchrun"
    seeds: list[int] = field(default_factory=list)
    fractions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_positive(self, "hours", "try 24")
        require(
            0 < self.stop_before_s < min(self.hours * 3600, _MOST_SIGNAL_S),
            f"{setting(self, 'stop_before_s')} must be positive and less than {key(self, 'hours')}={self.hours:g} "
            f"hours and than {_MOST_SIGNAL_S} s; try 300",
        )
        for name in ("partition", "account"):
            word = getattr(self, name)
            require(word is None or re.fullmatch(r"[\w.,-]+", word) is not None, f"{setting(self, name)} is no name")
        for word in self.sbatch:
            require(
                re.fullmatch(r"--[a-z-]+(=[\w.,:@%/+*-]+)?", word) is not None and not re.match(_RESERVED, word),
                f"{key(self, 'sbatch')}={word} must be an option of sbatch, such as --qos=long, and none that sternum "
                "sets itself",
            )


def render(job: Job, config: SlurmConfig, folders_of: Callable[[Sequence[str]], Sequence[str]]) -> str:
    """Return the batch script of a job.

    Args:
        job: the job
        config: what it needs of SLURM
        folders_of: returns the folders and object stores that the command writes with these arguments

    Raises:
        UserError: as `tasks_of`
    """
    tasks = [(shlex.join(arguments), doctor_words(job, folders_of(arguments))) for arguments in tasks_of(job, config)]
    return template("slurm.sh.j2").render(
        job=job,
        config=config,
        minutes=max(1, round(config.hours * 60)),
        env={name: shlex.quote(value) for name, value in job.env.items()},
        tasks=[(arguments, shlex.join(doctor)) for arguments, doctor in tasks],
    )


def tasks_of(job: Job, config: SlurmConfig) -> list[tuple[str, ...]]:
    """Return the arguments of each task of the job array, which is one task without seeds and fractions.

    Raises:
        UserError: if the command does not say where seed and fraction go, or two tasks pretrain in one folder
    """
    for name, values, mark in (("seeds", config.seeds, _SEED), ("fractions", config.fractions, _FRACTION)):
        require(
            bool(values) == any(mark in word for word in job.arguments),
            f"{setting(config, name)} and {mark} in the command belong together: {key(config, name)}=[1,10] runs the "
            f"command twice, with 1 and 10 in place of {mark}",
        )
    tasks = [
        tuple(word.replace(_SEED, str(seed)).replace(_FRACTION, str(fraction)) for word in job.arguments)
        for fraction, seed in product(config.fractions or [0], config.seeds or [0])  # 0 stands where no mark is
    ]
    require(
        job.command != "pretrain" or len({run for run, *_ in tasks}) == len(tasks),
        f"{job.arguments[0]} would be the run folder of several runs; put {_SEED} or {_FRACTION} into its name",
    )
    return tasks


def submit(script: str) -> str:
    """Give a batch script to sbatch, and return the number of the job.

    Raises:
        UserError: if this machine has no sbatch
        RunFailed: if sbatch refuses the script
    """
    return run_tool(["sbatch", "--parsable"], script)
