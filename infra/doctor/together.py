"""What the machines of a run find out together: versions, clocks, shared folders and the links between them."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.distributed as dist

from infra.doctor.finding import Finding
from infra.doctor.folders import existing, probe_name
from infra.errors import UserError
from infra.ranks.processes import Ranks, gather_objects, sum_over_ranks
from infra.storage.locks import try_lock
from infra.versions import differences

_LARGEST_SKEW_S: Final = 2.0  # as at the start of a run
_EXCHANGED: Final = 4 << 20  # float32 numbers
_REPEATS: Final = 3
_SLOW: Final = 4  # times the median of the links


@dataclass(frozen=True)
class Machine:
    """A machine of the run: its name, and the rank of its first process."""

    name: str
    rank: int


def compare_versions(machines: Sequence[Machine], versions: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Compare the versions of each machine with those of the first one."""
    first, *others = zip(machines, versions, strict=True)
    are_equal = True
    for machine, theirs in others:
        if different := differences(first[1], theirs):
            are_equal = False
            yield Finding(
                "versions",
                f"{machine.name} has {', '.join(different)} of {first[0].name}",
                "install the same versions on all machines: pip install --constraint constraints.txt",
            )
    if are_equal:
        yield Finding("versions", f"equal on {len(machines)} machines")


def compare_clocks(machines: Sequence[Machine]) -> Iterator[Finding]:
    """Read all clocks at the same moment, and compare them with that of the first machine. Collective."""
    sum_over_ranks(0)
    clocks = gather_objects(time.time())
    first, *others = machines
    aheads_s = {machine: clocks[machine.rank] - clocks[first.rank] for machine in others}
    for machine, ahead_s in aheads_s.items():
        if abs(ahead_s) > _LARGEST_SKEW_S:
            yield Finding(
                "clocks",
                f"that of {machine.name} is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} that of "
                f"{first.name}",
                "let chronyd or ntpd set both",
            )
    largest_s = max(map(abs, aheads_s.values()))
    if largest_s <= _LARGEST_SKEW_S:
        yield Finding("clocks", f"within {largest_s:.3f} s, the time of a message included")


def compare_folders(ranks: Ranks, machines: Sequence[Machine], folders: Sequence[Path]) -> Iterator[Finding]:
    """Check that all machines see the same folders, and that one keeps out the others by a lock. Collective."""
    for folder in folders:
        [name, *_] = gather_objects(probe_name() if ranks.is_first else None)
        probe = existing(folder) / name
        with ExitStack() as stack:
            if ranks.is_first:
                stack.callback(probe.unlink, missing_ok=True)
                with suppress(OSError, UserError):
                    descriptor = os.open(probe, os.O_RDWR | os.O_CREAT, 0o600)
                    stack.callback(os.close, descriptor)
                    try_lock(descriptor, fcntl.LOCK_EX, folder)
            sum_over_ranks(0)
            seen = gather_objects(_seen(probe, ranks))
            yield from _judged(folder, machines, seen)


def _seen(probe: Path, ranks: Ranks) -> str:
    """Return what this process sees of the file that the first one holds: absent, locked or open."""
    try:
        descriptor = os.open(probe, os.O_RDWR)
    except OSError:
        return "absent"
    try:
        return "open" if not ranks.is_first and try_lock(descriptor, fcntl.LOCK_EX, probe) else "locked"
    except UserError:
        return "locked"  # the check of this machine alone reports it
    finally:
        os.close(descriptor)


def _judged(folder: Path, machines: Sequence[Machine], seen: Sequence[Any]) -> Iterator[Finding]:
    if seen[0] == "absent":
        return  # the first machine cannot write there, which it reports itself
    absent, unlocked = (
        [machine.name for machine in machines if seen[machine.rank] == state] for state in ("absent", "open")
    )
    if absent:
        yield Finding(
            "shared folders",
            f"{folder} of {', '.join(absent)} is not that of {machines[0].name}",
            "mount the same disk there; a run folder must be shared, a cache need not: leave it out",
        )
    elif unlocked:
        yield Finding(
            "shared folders",
            f"{', '.join(unlocked)} can lock a file in {folder} while {machines[0].name} holds its lock",
            "mount the disk with locks that reach other machines: NFS without nolock and local_lock",
        )
    else:
        yield Finding("shared folders", f"{folder} is the same on {len(machines)} machines, and so are its locks")


def time_links(machines: Sequence[Machine], device: torch.device) -> Iterator[Finding]:
    """Time an all-reduce and an all-gather between each machine and the next one, one pair at a time. Collective."""
    pairs = list(zip(machines, [*machines[1:], machines[0]], strict=True))[: 1 if len(machines) == 2 else None]
    own = [_exchange_s([first.rank, second.rank], device) for first, second in pairs]
    times_s = [gather_objects(times)[first.rank] for times, (first, _) in zip(own, pairs, strict=True)]
    usual_s = median(reduce_s for reduce_s, _ in times_s)
    size_mb = 4 * _EXCHANGED / 1e6
    for (first, second), (reduce_s, gather_s) in zip(pairs, times_s, strict=True):
        text = (
            f"{first.name} - {second.name}: all-reduce of {size_mb:.0f} MB in {1000 * reduce_s:.0f} ms "
            f"({size_mb / reduce_s:,.0f} MB/s), all-gather in {1000 * gather_s:.0f} ms ({size_mb / gather_s:,.0f} MB/s)"
        )
        slow = "slower than the others: check its cable, switch and interface" if reduce_s > _SLOW * usual_s else None
        yield Finding("links", text, slow, is_warning=slow is not None)


def _exchange_s(pair: list[int], device: torch.device) -> tuple[float, float]:
    """Return the seconds of an all-reduce and an all-gather of two ranks; (0, 0) on the others, which wait."""
    group: Any = dist.new_group(pair)
    reduce_s = gather_s = 0.0
    if dist.get_rank() in pair:
        values = torch.ones(_EXCHANGED, device=device)
        both = [torch.empty_like(values) for _ in pair]
        reduce_s = _median_s(lambda: dist.all_reduce(values, group=group), device)
        gather_s = _median_s(lambda: dist.all_gather(both, values, group=group), device)
    sum_over_ranks(0)
    dist.destroy_process_group(group)
    return reduce_s, gather_s


def _median_s(exchange: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of an exchange, without the first one, which opens connections."""
    times_s = []
    for _ in range(1 + _REPEATS):
        began_s = time.perf_counter()
        exchange()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times_s.append(time.perf_counter() - began_s)
    return median(times_s[1:])
