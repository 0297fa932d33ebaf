"""The processes of one run: their ranks, and what they agree on."""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from infra.configuration.options import key, setting
from infra.errors import RunFailed, UserError, require

# A GPU's decoder keeps 32 MB for each thread.
MOST_DECODING_THREADS: Final = 16

_START: Final = "start the processes with torchrun"

# Launchers that set none of torchrun's variables: for each, those with the number of processes and with their rank.
# A step of Slurm comes before the job, which may have more tasks.
_OTHER_LAUNCHERS: Final = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("SLURM_NTASKS", "SLURM_PROCID", "srun"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "mpirun"),
    ("PMI_SIZE", "PMI_RANK", "mpiexec"),
)


@dataclass(frozen=True)
class Ranks:
    """The position of this process in the run and on its machine.

    Attributes:
        rank: number of this process in the run, from 0
        world: number of processes in the run
        local_rank: number of this process on its machine, from 0
        local_world: number of processes on this machine
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints messages for all."""
        return self.rank == 0


def ranks_from_environment() -> Ranks:
    """Read the ranks that torchrun or DeepSpeed's launcher set; without a launcher there is one process.

    Raises:
        UserError: if a variable is missing, is no whole number or contradicts another one, or if a launcher that sets
            none of them started several processes, of which each would train alone
    """
    if "WORLD_SIZE" not in os.environ:
        _require_one_process()
    local_worlds = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # torchrun calls it the first, DeepSpeed the second
    local_world = next((name for name in local_worlds if name in os.environ), local_worlds[0])
    world = _whole_number("WORLD_SIZE", 1, least=1)
    if world > 1:
        needed = ["RANK", "MASTER_ADDR", "MASTER_PORT", *([local_world] * ("LOCAL_RANK" in os.environ))]
        missing = [name for name in needed if not os.environ.get(name)]
        require(not missing, f"WORLD_SIZE={world} needs {' and '.join(missing)}; {_START}, or unset WORLD_SIZE")
        _whole_number("MASTER_PORT", 0, least=1, most=65535)
    ranks = Ranks(
        _whole_number("RANK", 0), world, _whole_number("LOCAL_RANK", 0), _whole_number(local_world, 1, least=1)
    )
    pairs = (
        ("RANK", ranks.rank, "WORLD_SIZE", world),
        ("LOCAL_RANK", ranks.local_rank, local_world, ranks.local_world),
    )
    for name, number, size_name, size in pairs:
        require(number < size, f"{name}={number} must be below {size_name}={size}; {_START}, or unset {name}")
    return ranks


def _whole_number(name: str, default: int, least: int = 0, most: int = 999_999) -> int:
    """Return the value of an environment variable."""
    text = os.environ.get(name, str(default))
    is_valid = re.fullmatch(r"[0-9]{1,6}", text) is not None and least <= int(text) <= most
    rule = f"must be a whole number from {least} to {most}"
    require(is_valid, f"{name}={text} {rule}; {_START}, or unset {name}")
    return int(text)


def _require_one_process() -> None:
    """Raise UserError if a launcher that sets no WORLD_SIZE started several processes."""
    for name, rank_name, launcher in _OTHER_LAUNCHERS:
        size = os.environ.get(name, "1")
        if rank_name in os.environ and size != "1":
            raise UserError(
                f"{name}={size}: each of {size} processes would train alone; let {launcher} start one torchrun on "
                f"each machine ({launcher} ... torchrun --nproc-per-node=GPUS -m launch.pretrain ...), or set "
                "WORLD_SIZE=1 if this is the only process"
            )
        if name in os.environ:
            return


def world_size() -> int:
    """Return the number of processes in the group, 1 without a group."""
    import torch.distributed as dist  # noqa: PLC0415 (a machine that only packs has no torch)

    return dist.get_world_size() if dist.is_initialized() else 1


def gather_objects(value: object) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank; for small values and rare calls.

    They travel as JSON, because torch's own function unpickles, and so executes, what a network peer sends.

    Args:
        value: what JSON can hold
    """
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    if not dist.is_initialized():
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(text)]))
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
    return [json.loads(bytes(padded[: int(size)].tolist())) for padded, size in zip(texts, sizes, strict=True)]


def decoding_threads(ranks: Ranks) -> int:
    """Return how many threads decode this process's images, 1 to 16: its share of the CPUs that it may use. Collective.

    A launcher may bind each rank to CPUs of its own; then no other rank shares them.
    """
    allowed = sorted(os.sched_getaffinity(0))
    first_here = ranks.rank - ranks.local_rank  # names this machine
    sharing = gather_objects([first_here, allowed]).count([first_here, allowed])
    return max(1, min(MOST_DECODING_THREADS, len(allowed) // sharing))


def sum_over_ranks(*counts: int) -> list[int]:
    """Return each count summed over all ranks, on every rank."""
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    sums = torch.tensor(counts)
    if world_size() > 1:
        dist.all_reduce(sums)
    return [int(value) for value in sums]


def require_world(config: Any, name: str, joined: int) -> None:
    """Check the number of processes that joined. If a machine is late, a launcher silently starts with fewer.

    Args:
        config: the dataclass with the expected number; None there allows any number
        name: its field
        joined: number of processes that joined

    Raises:
        UserError: if the numbers differ
    """
    if getattr(config, name) not in (None, joined):
        raise UserError(
            f"{setting(config, name)} processes are expected, but {joined} joined; start the missing machines, or "
            f"change {key(config, name)}"
        )


def clock_skew_s() -> float:
    """Return the largest difference between the ranks' clocks, plus the time of a message; equal on all ranks."""
    sum_over_ranks(0)  # so that all ranks read their clocks at the same moment
    clocks = gather_objects(time.time())
    return float(max(clocks) - min(clocks))


def on_first_rank(ranks: Ranks, action: Callable[[], object]) -> None:
    """Call `action` on the first rank while the others wait.

    Raises:
        UserError: on every rank if `action` raises it, so that none hangs
        RunFailed: likewise
    """
    failure: UserError | RunFailed | None = None
    if ranks.is_first:
        try:
            action()
        except (UserError, RunFailed) as error:
            failure = error
    [first, *_] = gather_objects(failure and [failure.exit_code, str(failure)])
    if failure:
        raise failure
    if first:
        exit_code, message = first
        raise (UserError if exit_code == UserError.exit_code else RunFailed)(message)


def require_same(value: object, name: str) -> None:
    """Check that all ranks have the same value.

    Raises:
        UserError: on every rank, if the values differ; the message calls them `name`
    """
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError(f"{name} differs between ranks: {values}; start all ranks with the same files and options")
