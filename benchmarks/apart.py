"""Calls in a separate process, and the peak memory of such a call."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import one_line


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, whose memory holds nothing else, and return the result.

    Raises:
        RuntimeError: if the call fails, with its error in one line.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        good, answer = receiver.recv()
    except EOFError:
        process.join()
        good, answer = False, f"its process ended with exit code {process.exitcode}"
    process.join()
    if not good:
        raise RuntimeError(answer)
    return answer


def _answer(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = True, function(*arguments)
    except Exception as error:
        answer = False, one_line(error)
    connection.send(answer)


class Memory:
    """Peak memory since the creation of this object, beyond what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before_bytes = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark VmHWM to VmRSS
            self._before_bytes = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Return the peak in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before_bytes
        return _status_bytes("VmHWM") - self._before_bytes


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _status_bytes(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(path: Path, name: str) -> int:
    lines = path.read_text(encoding="ascii").splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(value)
