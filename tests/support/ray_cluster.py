"""A Ray cluster of several nodes on this machine, closed to others, whose nodes can be killed.

Its processes are children of one of their own, so that Ray's settings do not reach the process that tests.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_STORE_BYTES = 100 * 2**20
_STARTS = 10
_REGISTER_S = 600


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster.

    Attributes:
        address: of its head, for --address
        environment: variables of a process that joins it
        commands: takes the number of a node to kill
        answers: a line for each killed node
    """

    address: str
    environment: Mapping[str, str]
    commands: IO[str]
    answers: IO[str]

    def kill(self, node: int) -> None:
        """Kill all processes of a node, numbered from 1, and wait until they have ended; the head is no such node."""
        self.commands.write(f"{node}\n")
        self.commands.flush()
        assert self.answers.readline() == f"killed {node}\n"


@contextmanager
def ray_cluster(nodes: int, cores: int = 1, unshare: Sequence[str] = ()) -> Iterator[LocalCluster]:
    """Start a head without cores and `nodes` nodes, and end them with the block.

    Args:
        nodes: number of nodes that work
        cores: cores of each
        unshare: a command that starts the cluster, such as one that hides a folder from it
    """
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that it listens on the loopback address only
            "RAY_TMPDIR": folder,  # it notes its address in a folder `ray` below, which it does not create
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_register_timeout_seconds": str(_REGISTER_S),
            "RAY_worker_niceness": "0",  # otherwise any other process starves its tasks
        }
        command = [*unshare, sys.executable, "-m", "tests.support.ray_cluster", folder, str(nodes), str(cores)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "the cluster did not start"
            yield LocalCluster(address, environment, process.stdin, process.stdout)
            process.stdin.close()


def _serve(folder: str, nodes: int, cores: int) -> None:
    """Start the cluster, print its address, and kill nodes until standard input ends."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - here, since it takes a second

    common = {
        "node_ip_address": "127.0.0.1",
        "temp_dir": folder,
        "include_dashboard": False,
        "include_log_monitor": False,
        "object_store_memory": _STORE_BYTES,
    }
    head = {**common, "num_cpus": 0, "no_monitor": True}
    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head | _free_ports()))
    working = [_patiently(lambda: cluster.add_node(**common, **_free_ports(), num_cpus=cores)) for _ in range(nodes)]
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        cluster.remove_node(working[int(line) - 1], allow_graceful=False)
        sys.stdout.write(f"killed {line.strip()}\n")
        sys.stdout.flush()
    cluster.shutdown()


def _free_ports() -> dict[str, int]:
    """Return ports for the agents of a node: it waits only 15 s until these have chosen some themselves."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: server.getsockname()[1] for name, server in zip(names, servers, strict=True)}


def _patiently(start: Callable[[], Any]) -> Any:
    """Start a node; Ray gives it 30 s and its agents 15 s, which a busy machine exceeds now and then."""
    for _ in range(_STARTS - 1):
        with suppress(Exception):
            return start()
    return start()


if __name__ == "__main__":
    _serve(sys.argv[1], *map(int, sys.argv[2:]))
