"""The machines of a run in `hardware.jsonl`: one line for each start, so that a report can say what it cost."""

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

from infra.log import say
from infra.ranks.processes import Ranks
from infra.storage.files import read_small, write_atomic
from infra.storage.json_files import BadJson, decode_json, encode_line

HARDWARE_NAME: Final = "hardware.jsonl"


@dataclass(frozen=True)
class Hardware:
    """What one start of a run used; the first process describes its machine and takes the others to be alike.

    Attributes:
        first_step: steps done before this start
        processes: processes of the run
        machines: machines of the run
        device: name of a process's GPU; empty on the CPU
        cpu: name of the processor
        cores: cores of one machine that the run may use
        memory_bytes: memory of one machine
        system: operating system, Python and torch
    """

    first_step: int
    processes: int
    machines: int
    device: str
    cpu: str
    cores: int
    memory_bytes: int
    system: str


def hardware_of(ranks: Ranks, device: torch.device, first_step: int) -> Hardware:
    """Describe the machine of this process."""
    return Hardware(
        first_step=first_step,
        processes=ranks.world,
        machines=max(1, ranks.world // ranks.local_world),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
    )


def record_hardware(run: Path, hardware: Hardware) -> None:
    """Add the machine of a start. Starts that ended before their first checkpoint are dropped, as their steps are."""
    kept = [before for before in read_hardware(run) if before.first_step < hardware.first_step]
    write_atomic(run / HARDWARE_NAME, b"".join(encode_line(line) for line in [*kept, hardware]))


def read_hardware(run: Path) -> list[Hardware]:
    """Return the machines of a run's starts, oldest first; empty for a run of an older version.

    A damaged line is left out with a warning.
    """
    path = run / HARDWARE_NAME
    try:
        lines = read_small(path).splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(decode_json(line, Hardware))
        except BadJson as error:
            say(f"warning: line {number} of {path} is damaged ({error}) and left out")
    return found


def _cpu_name() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()
