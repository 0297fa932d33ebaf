"""The process group of a run: how the ranks meet, over which network they talk, and how they part after an error."""

import errno
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from infra.errors import RunFailed, UserError
from infra.ranks.failure_watch import failures_shared
from infra.ranks.interfaces import interface_toward
from infra.ranks.processes import Ranks

_LOOPBACK: Final = "127.0.0.1"
# Ranks wait for each other's data over gloo, so inside NCCL they wait for no more than the GPUs' uneven work.
_LONGEST_NCCL_WAIT_S: Final = 180.0


@contextmanager
def process_group(
    ranks: Ranks,
    device: torch.device,
    timeout_s: float = 600.0,
    timeout_key: str = "timeout_s",
    on_failure: Callable[[RunFailed], None] = lambda error: None,
) -> Iterator[None]:
    """Join the run's process group (NCCL on GPUs, gloo on CPUs), and leave it at the end; one process has no group.

    The processes of one machine meet and talk on its loopback address only. If the block raises, the group stays open,
    because NCCL's orderly end waits for ranks that may wait for this one: let the process end soon (`end_process`).

    Args:
        ranks: the ranks that the launcher set
        device: the device of this process
        timeout_s: seconds to wait for the other processes, here and in every later operation; NCCL waits 180 s at most
        timeout_key: the option that sets `timeout_s`, for messages
        on_failure: as in `failures_shared`

    Raises:
        UserError: if no launcher set the address where the processes meet, or the ranks have different devices
        RunFailed: if a process does not join within `timeout_s`, or is lost later
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world == 1:
        yield
        return
    store = _join(ranks, device, timeout_s, timeout_key)
    try:
        with failures_shared(store, ranks.rank, on_failure):
            yield
    except RuntimeError as error:
        if not _is_group_error(error):
            raise
        raise RunFailed(
            f"another rank was lost or hangs ({_first_line(error)}); "
            "run the same command again to resume from the last checkpoint"
        ) from error
    dist.destroy_process_group()


def end_process(command: Callable[[], int]) -> NoReturn:
    """Call `command` and end this process with the exit code that it returns, or with 1 if it raises.

    After an error in a process group the end comes at once: Python's orderly one would wait for the other ranks.
    """
    try:
        code = command()
    except Exception:
        traceback.print_exc()
        code = 1
    if dist.is_initialized() and dist.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _join(ranks: Ranks, device: torch.device, timeout_s: float, timeout_key: str) -> Any:
    """Initialize torch's default group and return the store in which the ranks met."""
    timeout = timedelta(seconds=timeout_s)
    on_gpu = device.type == "cuda"
    try:
        store = None
        if ranks.world == ranks.local_world:
            _keep_on_this_machine()
            store = _loopback_store(ranks, timeout)
        else:
            _talk_on_the_way_to_the_master()
        if store is None:
            store, *_ = next(dist.rendezvous("env://", ranks.rank, ranks.world, timeout=timeout))  # type: ignore[attr-defined]
        _require_same_device(store, ranks, device)
        # CPU tensors always use gloo, so that the agreement of the ranks at every step does not wait for a GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timeout,
            device_id=device if on_gpu else None,
        )
        if on_gpu:
            nccl: Any = dist.group.WORLD._get_backend(device)  # type: ignore[union-attr]
            nccl._set_default_timeout(timedelta(seconds=min(timeout_s, _LONGEST_NCCL_WAIT_S)))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE={ranks.world}, but {error}; start with torchrun") from error
    except RuntimeError as error:
        if not _is_group_error(error):
            raise
        raise _not_joined(error, ranks, timeout_s, timeout_key) from error
    return store


def _not_joined(error: RuntimeError, ranks: Ranks, timeout_s: float, timeout_key: str) -> RunFailed:
    if "EADDRINUSE" in str(error):
        return RunFailed(
            f"MASTER_PORT={os.environ.get('MASTER_PORT')} is in use by another process on this machine "
            "(EADDRINUSE); end that process, or choose another port: torchrun --master-port=PORT"
        )
    if "timed out" not in str(error).lower() and "timeout" not in str(error).lower():
        return RunFailed(
            f"WORLD_SIZE={ranks.world} processes could not join ({_first_line(error)}); run the command again"
        )
    return RunFailed(
        f"not all of WORLD_SIZE={ranks.world} processes joined within {timeout_key}={timeout_s:g} "
        f"({_first_line(error)}); start the missing machines, or raise {timeout_key}, and run the command again"
    )


def _require_same_device(store: Any, ranks: Ranks, device: torch.device) -> None:
    """Check that all ranks are on GPUs or all on CPUs; else those with NCCL would wait for those without it.

    Raises:
        UserError: on every rank, if they are not
    """
    names = [f"sternum/device/{rank}" for rank in range(ranks.world)]
    store.set(names[ranks.rank], device.type)
    store.wait(names)
    devices = [value.decode() for value in store.multi_get(names)]
    if len(set(devices)) > 1:
        store.set(f"{names[ranks.rank]}/read", "")
        if ranks.is_first:  # it may keep the store, from which the others still read
            store.wait([f"{name}/read" for name in names])
        on_cpu = [str(rank) for rank, name in enumerate(devices) if name == "cpu"]
        raise UserError(
            f"ranks {', '.join(on_cpu[:8])}{', ...' * (len(on_cpu) > 8)} of WORLD_SIZE={ranks.world} have no usable "
            "GPU and the others have one; check nvidia-smi on their machines, or hide all GPUs"
        )


def _keep_on_this_machine() -> None:
    """Let gloo and NCCL listen on the loopback address, unless the user chose another interface."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")


def _talk_on_the_way_to_the_master() -> None:
    """Let gloo use the interface that leads to MASTER_ADDR, unless the user chose one.

    By itself gloo takes the address that the host's name resolves to, on Debian 127.0.1.1, which no machine reaches.
    """
    address = os.environ.get("MASTER_ADDR")
    if not address or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    interface = interface_toward(address)
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def _loopback_store(ranks: Ranks, timeout: timedelta) -> TCPStore | None:
    """Return a store for the processes of one machine to meet in; torch's own listens on all addresses.

    Returns:
        The store; None if torchrun offers one, or no launcher set a port.

    Raises:
        RunFailed: if another program listens on the port
    """
    port = os.environ.get("MASTER_PORT")
    if port is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listener = None
    if ranks.is_first:
        try:
            listener = socket.create_server((_LOOPBACK, int(port))).detach()
        except OSError as error:
            raise RunFailed(
                f"MASTER_PORT={port} cannot be used ({errno.errorcode[error.errno or errno.EIO]}: {error.strerror}); "
                "run the command again, or choose another port with the launcher's --master-port"
            ) from error
    return TCPStore(_LOOPBACK, int(port), ranks.world, ranks.is_first, timeout, master_listen_fd=listener)


def _is_group_error(error: RuntimeError) -> bool:
    """Return whether the other processes caused the error; gloo raises a plain RuntimeError."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
