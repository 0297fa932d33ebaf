"""The resources of one machine: shared memory, open files and memory."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from infra.doctor.finding import Finding

_SHARED: Final = Path("/dev/shm")
_LEAST_SHARED_BYTES: Final = 2**30  # containers get 64 MiB unless told otherwise, too little for NCCL and Ray
_LEAST_FILES: Final = 1024  # Sternum keeps 256 shards open; libraries, connections and checkpoints come on top


def check_shared_memory() -> Iterator[Finding]:
    """Compare the shared memory with what NCCL between GPUs, and Ray, need."""
    try:
        system = os.statvfs(_SHARED)
    except OSError as error:
        yield Finding("shared memory", f"{_SHARED} cannot be used: {error.strerror}", "mount a tmpfs there")
        return
    size = system.f_blocks * system.f_frsize
    text = f"{_SHARED} has {megabytes(size)}"
    if size < _LEAST_SHARED_BYTES:
        yield Finding(
            "shared memory",
            f"{text}, less than the {megabytes(_LEAST_SHARED_BYTES)} that NCCL and Ray may need",
            "give a container more: docker run --shm-size=8g; in Kubernetes an emptyDir of medium Memory at /dev/shm",
        )
    else:
        yield Finding("shared memory", text)


def check_open_files() -> Iterator[Finding]:
    """Compare the limit of open files with what a run opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "any number of" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    text = f"a process may open {shown} files"
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        yield Finding("open files", f"{text}, fewer than {_LEAST_FILES:,}", f"raise the limit: ulimit -n {most}")
    else:
        yield Finding("open files", text)


def check_memory() -> Iterator[Finding]:
    """Say how much memory and how many cores this process may use."""
    memory = psutil.virtual_memory()
    yield Finding(
        "memory",
        f"{megabytes(memory.available)} of {megabytes(memory.total)} are free; "
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores may be used",
    )


def megabytes(size_bytes: int) -> str:
    """Return a size in MB, or from 10 GB on in GB."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 10**10 else f"{size_bytes / 1e6:,.0f} MB"
