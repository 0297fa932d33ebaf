"""The processes of one run: who they are, how they start and end together, what they agree on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from infra.errors import UserError


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
    """Read what torchrun set; one process where it did not start this one."""
    names = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
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
    """Join the run's process group (NCCL on GPUs, gloo on CPUs) and leave it at the end; nothing for one process."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world == 1:
        yield
        return
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except ValueError as error:
        raise UserError(f"WORLD_SIZE={ranks.world}, but {error}; start with torchrun") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


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


def on_first_rank(ranks: Ranks, action: Callable[[], object]) -> None:
    """Let the first rank act while the others wait; its UserError is raised on every rank, so that none hangs."""
    message = None
    if ranks.is_first:
        try:
            action()
        except UserError as error:
            message = str(error)
    first = gather_objects(message)[0]
    if first is not None:
        raise UserError(str(first))


def require_same(value: object, what: str) -> None:
    """Raise UserError on every rank unless all ranks hold the same `value`."""
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError(f"{what} differs between ranks: {values}; start all ranks with the same files and options")
