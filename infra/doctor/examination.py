"""The examination of this machine, and of all machines of a run together."""

import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.doctor.finding import Finding, finding_of
from infra.doctor.folders import check_folder, check_store
from infra.doctor.gpus import check_gpus
from infra.doctor.network import check_interfaces, check_rendezvous, way_out
from infra.doctor.resources import check_memory, check_open_files, check_shared_memory
from infra.errors import RunFailed, UserError
from infra.ranks.processes import Ranks, gather_objects
from infra.versions import NOT_INSTALLED, versions_for_training

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MachineReport:
    """What was found on one machine."""

    name: str
    findings: list[Finding]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        machines: each machine of the run on the first rank, else this one
        together: what the machines found out together; on the first rank
        wrong: number of things that are wrong; equal on all ranks that met
    """

    machines: list[MachineReport]
    together: list[Finding]
    wrong: int

    def joined(self, findings: Iterable[Finding]) -> "Report":
        """Return this report with more findings."""
        more = list(findings)
        wrong = self.wrong + sum(finding.is_wrong for finding in more)
        return Report(self.machines, [*self.together, *more], wrong)


def examine(ranks: Ranks, folders: Sequence[Path], stores: Sequence[str], timeout_s: float) -> Report:
    """Examine this machine, and with several processes all machines together.

    Args:
        ranks: this process among all; the first one of each machine examines it
        folders: folders that the run writes, which all machines must share
        stores: URLs of object stores that the run writes
        timeout_s: how long to wait for the other machines
    """
    own = list(_of_this_machine(ranks, folders, stores)) if ranks.local_rank == 0 else []
    if ranks.world > ranks.local_world:
        own += check_interfaces()
        own += check_rendezvous(timeout_s) if not ranks.is_first else ()
    here = MachineReport(socket.gethostname(), own)
    cannot_meet = any(finding.is_wrong for finding in own if finding.check in ("interfaces", "rendezvous"))
    if ranks.world == 1 or cannot_meet:
        return _report([here], [])
    from infra.ranks.process_group import process_group  # noqa: PLC0415 (a machine that only packs has no torch)

    try:
        device = _device(ranks)
        with process_group(ranks, device, timeout_s, "timeout_s"):
            return _of_all_machines(ranks, here, folders, device)
    except (UserError, RunFailed) as error:
        lost = replace(finding_of("rendezvous", error), mend=way_out(ranks))
        return _report([replace(here, findings=[*own, lost])], [])


def _of_this_machine(ranks: Ranks, folders: Sequence[Path], stores: Sequence[str]) -> Iterator[Finding]:
    shown = (f"{name} {version}" for name, version in versions_for_training().items() if version != NOT_INSTALLED)
    yield Finding("versions", ", ".join(shown))
    yield from check_gpus(ranks)
    yield from check_memory()
    yield from check_shared_memory()
    yield from check_open_files()
    for folder in folders:
        yield from check_folder(folder)
    for store in stores:
        yield from check_store(store)


def _of_all_machines(ranks: Ranks, here: MachineReport, folders: Sequence[Path], device: "torch.device") -> Report:
    """Return what all machines found. Collective; only the first rank's report has it all."""
    from infra.doctor.together import (  # noqa: PLC0415 (imports torch)
        Machine,
        compare_clocks,
        compare_folders,
        compare_versions,
        time_links,
    )

    records: list[dict[str, Any]] = gather_objects(
        {**asdict(here), "first": ranks.local_rank == 0, "versions": versions_for_training()}
    )
    firsts = [(rank, record) for rank, record in enumerate(records) if record["first"]]
    machines = [Machine(f"{record['name']} (rank {rank})", rank) for rank, record in firsts]
    together: list[Finding] = []
    if len(machines) > 1:
        together += compare_versions(machines, [record["versions"] for _, record in firsts])
        together += compare_clocks(machines)
        together += compare_folders(ranks, machines, folders)
        together += time_links(machines, device)
    reports = [
        MachineReport(machine.name, [Finding(**finding) for finding in record["findings"]])
        for machine, (_, record) in zip(machines, firsts, strict=True)
    ]
    report = _report(reports, together)
    return replace(report, wrong=gather_objects(report.wrong)[0])


def _report(machines: list[MachineReport], together: list[Finding]) -> Report:
    findings = [*together, *(finding for machine in machines for finding in machine.findings)]
    return Report(machines, together, sum(finding.is_wrong for finding in findings))


def _device(ranks: Ranks) -> "torch.device":
    """Return the device of this process; the CPU if torch cannot use the GPU, which `check_gpus` reports."""
    import torch  # noqa: PLC0415

    from infra.ranks.devices import device_of  # noqa: PLC0415

    try:
        return device_of(ranks)
    except UserError:
        return torch.device("cpu")
