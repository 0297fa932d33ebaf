"""The section on hardware and cost: time, device hours, and an estimate of the energy with its assumption."""

from collections.abc import Iterator
from typing import Final

from evaluation.report.html.blocks import Block, Facts, Missing, Paragraph, Section
from evaluation.report.html.run_facts import Pretraining, RunFacts
from infra.monitoring.hardware import Hardware
from infra.words import counted

# Watts of a whole board at full load, by a part of the device's name, as the makers' data sheets say; the more
# specific name comes first.
_GPU_W: Final = {
    "B200": 1000, "H200": 700, "H100 PCIe": 350, "H100 NVL": 400, "H100": 700, "A100": 400, "V100": 300, "L40": 300,
    "L4": 72, "T4": 70, "A10": 150, "RTX 4090": 450, "RTX 3090": 350,
}  # fmt: skip
_CORE_W: Final = 12  # of a busy core of a server with its share of the package; an assumption


def cost_section(facts: RunFacts) -> Section:
    """Return what the run ran on, how long, and about how much energy that took."""
    blocks: list[Block] = []
    if facts.pretraining:
        blocks += _pretraining_cost(facts.pretraining)
    if facts.results and facts.results.timing:
        names = {"features_s": "features of the images", "search_s": "search for C and controls"}
        timing = facts.results.timing.items()
        blocks.append(Facts([(f"probe, {names.get(name, name)}", duration(seconds)) for name, seconds in timing]))
    return Section("cost", "Hardware and cost", blocks or [Missing("Nothing is recorded about hardware and time.")])


def _pretraining_cost(pretraining: Pretraining) -> Iterator[Block]:
    hours, starts = pretraining.hours, pretraining.hardware
    items: list[tuple[str, str]] = []
    if hours is not None:
        items.append(("pretraining, without pauses between starts", duration(3600 * hours)))
        if share := pretraining.metrics[-1].get("run/training_share"):
            items.append(("effective training time, of all time since the run began", f"{100 * share:.1f} %"))
    if not starts:
        if items:
            yield Facts(items)
        yield Missing("The machine is not recorded, because an older version of Sternum trained this run.")
        return
    last = starts[-1]
    items += [("starts", str(len(starts))), *_machine(last)]
    if hours is not None:
        items += _energy(last, hours)
    yield Facts(items)
    if any((start.device, start.cpu, start.machines) != (last.device, last.cpu, last.machines) for start in starts):
        yield Paragraph("The starts ran on different machines; the figures take all for the last one.", "quiet")


def _machine(hardware: Hardware) -> Iterator[tuple[str, str]]:
    processes, machines = counted(hardware.processes, "process"), counted(hardware.machines, "machine")
    yield "last start", f"{processes} on {machines}"
    if hardware.device:
        yield "device of each process", hardware.device
    yield "processor", f"{hardware.cpu}, {counted(hardware.cores, 'core')} for the run on each machine"
    yield "memory of each machine", f"{hardware.memory_bytes / 2**30:.0f} GiB"
    yield "system", hardware.system


def _energy(hardware: Hardware, hours: float) -> Iterator[tuple[str, str]]:
    """Yield device hours, and the energy where the power of the device is known."""
    if not hardware.device:
        core_hours = hours * hardware.cores * hardware.machines
        yield "CPU-core hours", f"{core_hours:.2f}"
        why = f"{_CORE_W} W for each core of the machines, all busy; without memory, disks and cooling"
        yield "energy (an estimate)", f"about {core_hours * _CORE_W / 1000:.2g} kWh, assuming {why}"
        return
    gpu_hours = hours * hardware.processes
    yield "GPU hours", f"{gpu_hours:.2f}"
    watts = next((watts for name, watts in _GPU_W.items() if name in hardware.device), None)
    if watts is None:
        yield "energy (an estimate)", f"not available: the power of {hardware.device} is not known to Sternum"
    else:
        why = f"{watts} W for each GPU, its data sheet's full load; without processors, disks and cooling"
        yield "energy (an estimate)", f"about {gpu_hours * watts / 1000:.2g} kWh, assuming {why}"


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} hours"
