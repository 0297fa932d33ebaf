"""Ray on this machine, or a cluster, for the time of a block."""

import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from infra.errors import RunFailed, UserError
from infra.urls import require_no_credentials

# Ray reads these when it is first imported: no usage statistics, no tables of Tune, no log files for each trial, no
# snapshots of the search.
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
}
# Ray reads it when it is first imported, and then listens on the loopback address only, on Linux too despite its name.
_LOOPBACK_ONLY: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# For a Ray on this machine: run trials at the priority of this process, because any other process starves them at Ray's
# default, the lowest; start no processes for plain tasks, because Tune has none.
_LOCAL: Final = {
    _LOOPBACK_ONLY: "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}
# Below the private folder. Ray opens its own folder to all users, hence the level between.
_RAY_FOLDER: Final = "r"
_LONGEST_SOCKET: Final = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_SOCKET_BYTES: Final = 107  # of the path of a Unix socket
_STORE_BYTES: Final = 128 * 2**20
_REACH_S: Final = 10.0


@contextmanager
def ray_session(cores: int | None = None, address: str | None = None, shared_bytes: int = 0) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster, until the block ends.

    A local Ray listens on the loopback address only, has no dashboard, requires a random token, and keeps its files in
    a private folder that is removed at the end. If this process has already started Ray, that one is used and left
    running.

    Args:
        cores: cores of this machine to use, all by default
        address: a cluster to join: `auto` for the one that this machine belongs to, HOST:PORT of its head, or
            ray://HOST:PORT from outside
        shared_bytes: total size of what the tasks share

    Raises:
        UserError: if the cluster cannot be joined, the path of the temporary folder is too long for Ray, or this
            process imported Ray before a local one could be told where to listen
        RunFailed: if Ray does not start on this machine
    """
    cores = cores or len(os.sched_getaffinity(0))
    # How many trials wait for a core. Tune's default, 1, leaves cores idle. Its default for a plain grid search, 200,
    # sets up all 200 before the first core starts.
    waiting = {"TUNE_MAX_PENDING_TRIALS_PG": "200" if address else str(2 * cores)}
    for name, value in (_QUIET | waiting | ({} if address else _LOCAL)).items():
        os.environ.setdefault(name, value)
    if not address:
        # Without a mode, Ray requires a token, even if it was imported before. Its own token would be in a file that
        # others can read. Ray keeps the first token that a process uses.
        os.environ.pop("RAY_AUTH_MODE", None)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # noqa: PLC0415 (after its environment is set; its import takes a second)

    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if address:
                _join(address)
            else:
                _start(cores, shared_bytes, Path(folder))
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends the process with its C++ stack
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, on_sigterm)


def _start(cores: int, shared_bytes: int, folder: Path) -> None:
    import ray  # noqa: PLC0415
    from ray._private import ray_constants  # noqa: PLC0415

    if ray_constants.ENABLE_RAY_CLUSTER and os.environ[_LOOPBACK_ONLY] == "0":
        raise UserError(
            "this program imported Ray before Sternum started it, so Ray would listen on all addresses; "
            f"set {_LOOPBACK_ONLY}=0 before the program starts, or use --search=serial, which needs no Ray"
        )
    longest = len(os.fsencode(folder / _RAY_FOLDER / _LONGEST_SOCKET))
    if longest > _SOCKET_BYTES:
        raise UserError(
            f"TMPDIR={folder.parent} is {longest - _SOCKET_BYTES} characters too long for the sockets of Ray; set "
            "TMPDIR=/tmp, or use --search=serial, which needs no Ray"
        )
    try:
        ray.init(
            address="local",  # ignores RAY_ADDRESS and a Ray that another user started
            num_cpus=cores,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / _RAY_FOLDER),
            object_store_memory=_STORE_BYTES + 2 * shared_bytes,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.CRITICAL,  # callers report failures, in one line
        )
    except Exception as error:
        raise RunFailed(f"Ray did not start on this machine: {error}; --search=serial needs no Ray") from error


def _join(address: str) -> None:
    import ray  # noqa: PLC0415
    from ray._private.services import get_ray_address_from_environment  # noqa: PLC0415 (resolves `auto`)

    require_no_credentials(address, "address")
    try:
        head = get_ray_address_from_environment("auto", None) if address == "auto" else address
        _require_reachable(head)
        ray.init(address=head, log_to_driver=False, configure_logging=True, logging_level=logging.CRITICAL)
    except Exception as error:
        raise UserError(
            f"address={address}: cannot join this Ray cluster: {reason_of(error)}; check the address, that the cluster "
            "runs, and RAY_AUTH_MODE=token if it requires a token; or leave address out to use this machine"
        ) from error


def _require_reachable(address: str) -> None:
    """Open and close a connection first, because Ray itself retries for minutes and then ends the process."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("it must be auto, HOST:PORT or ray://HOST:PORT")
    with socket.create_connection((parts.hostname, parts.port), timeout=_REACH_S):
        pass


def reason_of(error: BaseException) -> str:
    """Return the first line of an error, without the traceback of the worker that raised it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
