"""The processes of one run: who they are, how they start and end together, what they agree on."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from infra.errors import RunFailed, UserError


@dataclass(frozen=True)
class Ranks:
    """This process among all (`rank` of `world`) and among those of its machine (`local_rank` of `local_world`)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def cpus(self) -> int:
        """This process's share of the machine's CPUs, at least one."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0


def ranks_from_environment() -> Ranks:
    """Read what torchrun or DeepSpeed's launcher set; one process where neither started this one."""
    names = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
    if names["local_world"] not in os.environ:
        names["local_world"] = "LOCAL_SIZE"  # DeepSpeed's name for it
    values = {field: os.environ[name] for field, name in names.items() if name in os.environ}
    try:
        return Ranks(**{field: int(value) for field, value in values.items()})
    except ValueError as error:
        raise UserError(f"{list(names.values())} must be integers, but are {values}; start with torchrun") from error


def device_of(ranks: Ranks) -> torch.device:
    """Return the GPU of this process, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {ranks.local_rank} has no GPU: this machine has {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    return torch.device("cuda", ranks.local_rank)


@contextmanager
def process_group(ranks: Ranks, device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """Join the run's process group (NCCL on GPUs, gloo on CPUs) and leave it at the end; nothing for one process.

    Raises UserError when no launcher has said where the processes meet, and RunFailed when not all come within
    `timeout_s`, or when one is lost later.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world == 1:
        yield
        return
    try:
        # Tensors on the CPU always travel by gloo: what ranks agree on at every step must not wait for a GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except ValueError as error:
        raise UserError(f"WORLD_SIZE={ranks.world}, but {error}; start with torchrun") from error
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        if "timed out" not in str(error).lower():
            raise RunFailed(
                f"WORLD_SIZE={ranks.world} processes could not join ({_first_line(error)}); give the command again"
            ) from error
        raise RunFailed(
            f"not all of WORLD_SIZE={ranks.world} processes came within train.timeout_s={timeout_s:g} "
            f"({_first_line(error)}); start the missing machines, or raise train.timeout_s, and give the command again"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        raise RunFailed(
            f"another rank was lost or hangs ({_first_line(error)}); the same command goes on from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_of_the_group(error: RuntimeError) -> bool:
    """Tell whether the other processes are the cause: what gloo raises has no class of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def world_size() -> int:
    """Return the number of processes in the group, 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_objects(value: object) -> list[object]:
    """Return every rank's `value`, in rank order, on every rank (for small values, rarely)."""
    if not dist.is_initialized():
        return [value]
    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(*counts: int) -> list[int]:
    """Return each count summed over all ranks, on every rank."""
    sums = torch.tensor(counts)
    if world_size() > 1:
        dist.all_reduce(sums)
    return [int(value) for value in sums]


def require_world(promised: int | None, had: int) -> None:
    """Raise UserError unless as many processes came as were promised (None: any number).

    A launcher may start with fewer machines than it was given, in silence, when one of them comes late.
    """
    if promised not in (None, had):
        raise UserError(
            f"train.world_size={promised} processes were promised, but {had} came; start the missing machines, or "
            "change train.world_size"
        )


def clock_skew_s() -> float:
    """Return how far apart the ranks' clocks are, up to the time a message takes; the same on all ranks."""
    sum_over_ranks(0)  # so that all look at the same moment
    clocks = [float(str(clock)) for clock in gather_objects(time.time())]
    return max(clocks) - min(clocks)


def on_first_rank(ranks: Ranks, action: Callable[[], object]) -> None:
    """Let the first rank act while the others wait; what it raises for users is raised on every rank, so none hangs."""
    failure: UserError | RunFailed | None = None
    if ranks.is_first:
        try:
            action()
        except (UserError, RunFailed) as error:
            failure = error
    first = gather_objects(failure and (type(failure), str(failure)))[0]
    if isinstance(first, tuple):
        kind, message = first
        raise kind(message) from failure


def require_same(value: object, what: str) -> None:
    """Raise UserError on every rank unless all ranks hold the same `value`."""
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError(f"{what} differs between ranks: {values}; start all ranks with the same files and options")
