"""Two machines, as network namespaces behind a switch, and a pretraining that runs on both."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import psutil
from launched import TORCHRUN, Launched, launched, pretraining, supervised

from infra.metrics import read_metrics
from ssl_core.train import PretrainConfig

NODES = 2
PORT = 29400


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """Nodes 0 and 1, each a namespace with one interface, eth0, that a cable joins to a switch in a third one."""

    def __init__(self) -> None:
        token = uuid4().hex[:6]
        self._switch = f"sternum-{token}-switch"
        self._nodes = [f"sternum-{token}-{node}" for node in range(NODES)]

    def build(self) -> None:
        """Make namespaces and cables; raises CalledProcessError where the kernel does not let us."""
        for name in (self._switch, *self._nodes):
            ip("netns", "add", name)
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for node, name in enumerate(self._nodes):
            ends = ["eth0", "netns", name, "type", "veth", "peer", "name", f"port-{node}", "netns", self._switch]
            ip("link", "add", *ends)
            ip("-n", self._switch, "link", "set", f"port-{node}", "master", "bridge")
            ip("-n", name, "address", "add", f"{self.address(node)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
            self.join(node)

    def address(self, node: int) -> str:
        return f"10.203.17.{node + 1}"

    def on(self, node: int, command: list[str]) -> list[str]:
        """Return a command that runs another one on a node."""
        return ["ip", "netns", "exec", self._nodes[node], *command]

    def cut(self, node: int) -> None:
        """Pull a node's cable."""
        ip("-n", self._switch, "link", "set", f"port-{node}", "down")

    def join(self, node: int) -> None:
        """Plug it in again."""
        ip("-n", self._switch, "link", "set", f"port-{node}", "up")

    def kill(self, node: int) -> None:
        """Kill all processes of a node, which says nothing to the other one if its cable is pulled."""
        processes = [psutil.Process(pid) for pid in self._pids(self._nodes[node]) if psutil.pid_exists(pid)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)

    def _pids(self, name: str) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def remove(self) -> None:
        """Kill whatever runs in it, and remove it."""
        for node in range(NODES):
            self.kill(node)
        for name in (self._switch, *self._nodes):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def start(network: Network, node: int, config: PretrainConfig, stack: ExitStack, nodes: str = str(NODES)) -> Launched:
    """Start a node's part of the run under `sternum supervise`; the first node is the one that all meet at.

    nodes: what torchrun is told of their number, as N or MIN:MAX.
    """
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={network.address(0)}:{PORT}", "--rdzv-id=test"]
    # With MIN:MAX machines, those that are there wait 5 s (torchrun's own default is 30) for more.
    conf = f"is_host={'false' if node else 'true'},last_call_timeout=5"
    meeting += [f"--rdzv-conf={conf}", f"--local-addr={network.address(node)}"]
    command = [*TORCHRUN, f"--nnodes={nodes}", "--nproc-per-node=1", *meeting, "-m", *pretraining(config)]
    command = supervised(config, command, "--patience=20")
    log = config.run_folder.parent / f"node-{node}.log"
    return stack.enter_context(launched(network.on(node, command), log, GLOO_SOCKET_IFNAME="eth0"))


def reached(config: PretrainConfig) -> int:
    """Return the newest step of which there are metrics."""
    return int(max((line["step"] for line in read_metrics(config.run_folder)), default=0))


class NoNetwork(Exception):
    """Namespaces cannot be made here; says why."""


@contextmanager
def two_machines() -> Iterator[Network]:
    """Give a network that is gone, with all its processes, when the block ends; raises NoNetwork."""
    if os.geteuid() != 0:
        raise NoNetwork("network namespaces need root")
    if shutil.which("ip") is None:
        raise NoNetwork("network namespaces need the command `ip`, of the package iproute2")
    made = Network()
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            raise NoNetwork(f"network namespaces do not work here: {error.stderr.strip()}") from error
        yield made
    finally:
        made.remove()
