"""Libraries that a process loads before the C library, for faults that no test can cause for real.

A clock cannot be set for one process alone, and every file system of a test machine locks files.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += 30;
    return result;
}
"""
_NO_LOCKS = """
#include <errno.h>
int flock(int descriptor, int operation) { errno = ENOLCK; return -1; }
"""


def clock_30_s_ahead(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose clock is 30 s ahead."""
    return {"LD_PRELOAD": str(_built(folder / "clock.so", _CLOCK))}


def no_locks(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose file systems answer flock as NFS without its lock daemon does."""
    return {"LD_PRELOAD": str(_built(folder / "no_locks.so", _NO_LOCKS))}


def _built(library: Path, source: str) -> Path:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("this fault needs a C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=source, text=True, check=True)
    return library
