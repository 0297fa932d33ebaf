"""`sternum doctor`; on several machines `torchrun -m launch.doctor`, or one process on each by srun."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.configuration.config import parse
from infra.configuration.options import key, require_positive
from infra.doctor.examination import Report, examine
from infra.doctor.finding import Finding
from infra.errors import RunFailed
from infra.ranks.processes import Ranks, ranks_from_environment
from infra.storage.json_files import encode_json
from infra.urls import Location, require_no_credentials, scheme_of
from infra.words import counted, printable
from launch.cli import run_command, split_at_dashes

# What srun sets, and what torchrun would set in its place.
_SLURM: Final = {"SLURM_NTASKS": "WORLD_SIZE", "SLURM_PROCID": "RANK", "SLURM_LOCALID": "LOCAL_RANK"}


@dataclass(frozen=True)
class DoctorConfig:
    """What to examine.

    Args:
        folders: folders and object stores that the run writes; all machines must see the same folders, and the locks in
            them
        timeout_s: seconds to wait for the other machines
        json: print the findings as JSON
    """

    folders: list[Location] = field(default_factory=list)
    timeout_s: float = 60.0
    json: bool = False

    def __post_init__(self) -> None:
        for location in self.folders:
            require_no_credentials(location, key(self, "folders"))
        require_positive(self, "timeout_s", "try 60")


def main(arguments: Sequence[str]) -> int:
    """Print what was found, and how to mend what is wrong.

    Raises:
        RunFailed: if something is wrong
    """
    words, command = split_at_dashes(arguments)
    config = parse(
        DoctorConfig,
        words,
        command="doctor",
        description=(
            "Examine this machine before a run: versions, GPUs and driver, memory, open files, folders and stores. "
            "Started by torchrun or srun, all machines compare their versions, clocks and folders, and time their "
            "links. With a pretraining command after --, also look at the memory and disk that it needs. The exit code "
            "is 1 if anything is wrong."
        ),
        examples=(
            "sternum doctor --folders=[runs,s3://bucket/runs]",
            "sternum doctor -- sternum pretrain runs/paper --config=gazda2021 --data.shards=[shards/chexpert]",
            "torchrun --nnodes=4 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=node1:29500 \\",
            "    -m launch.doctor --folders=[/shared/runs]",
            "MASTER_ADDR=node1 MASTER_PORT=29500 srun --ntasks-per-node=1 sternum doctor --folders=[/shared/runs]",
        ),
    )
    ranks = _ranks()
    plan = None
    if command:
        from launch.doctor_plan import Plan  # noqa: PLC0415 (the examination alone needs no views and no models)

        plan = Plan(command)
    locations = [*config.folders, *(plan.locations if plan else ())]
    folders = [Path(location) for location in locations if scheme_of(location) is None]
    stores = [str(location) for location in locations if scheme_of(location) is not None]
    report = examine(ranks, folders, stores, config.timeout_s)
    if plan is not None and ranks.is_first:
        report = report.joined(plan.findings(ranks))
    if ranks.is_first or len(report.machines) == 1:
        _show(report, as_json=config.json)
    if report.wrong:
        raise RunFailed(f"{counted(report.wrong, 'thing')} must be mended before a run; each line above says how")
    return 0


def _ranks() -> Ranks:
    """Return the ranks that torchrun or srun set."""
    if "WORLD_SIZE" not in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in os.environ:
        os.environ |= {name: os.environ[theirs] for theirs, name in _SLURM.items() if theirs in os.environ}
        # Such as 2(x4),1: so many tasks on each machine.
        os.environ["LOCAL_WORLD_SIZE"] = re.split(r"\D", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]
    return ranks_from_environment()


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(encode_json(report).decode() + "\n")
        return
    for machine in report.machines:
        _show_findings(machine.name, machine.findings)
    if report.together:
        _show_findings("all together", report.together)
    sys.stdout.flush()


def _show_findings(title: str, findings: Sequence[Finding]) -> None:
    sys.stdout.write(f"{title}\n")
    for finding in findings:
        state = "ok" if finding.mend is None else "warn" if finding.is_warning else "WRONG"
        mend = f"; {finding.mend}" if finding.mend else ""
        sys.stdout.write(f"  {state:<5} {finding.check}: {printable(finding.text + mend)}\n")


if __name__ == "__main__":  # torchrun starts a module
    from infra.ranks.process_group import end_process

    end_process(lambda: run_command(main, sys.argv[1:]))
