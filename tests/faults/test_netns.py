"""Two machines, as namespaces behind a switch: cables pulled and machines lost, and the same bits at the end."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from harness import Outcome, assert_same_bits, end, outcome, small, total_steps
from harness import start as start_ranks
from launched import TORCHRUN, Launched, launched, pretraining, supervised

from infra.metrics import read_metrics
from ssl_core.checkpoint_writer import CheckpointConfig
from ssl_core.train import PretrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(1500)]

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


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command `ip`, of the package iproute2")
    made = Network()
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces do not work here: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()


def run_of(folder: Path, shards: Path, timeout_s: float = 60.0) -> PretrainConfig:
    config = small(folder / "run", shards, epochs=6, timeout_s=timeout_s, world_size=NODES)
    return replace(config, checkpoints=CheckpointConfig(keep_last=2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Outcome:
    """On one machine."""
    config = run_of(tmp_path_factory.mktemp("undisturbed"), simulated_shards)
    assert end(start_ranks(config, NODES), timeout_s=600) == [0] * NODES
    return outcome(config.run_folder)


def start(network: Network, node: int, config: PretrainConfig, stack: ExitStack) -> Launched:
    """Start a node's part of the run; the first node is the one that all meet at."""
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={network.address(0)}:{PORT}", "--rdzv-id=test"]
    meeting += [f"--rdzv-conf=is_host={'false' if node else 'true'}", f"--local-addr={network.address(node)}"]
    command = [*TORCHRUN, f"--nnodes={NODES}", "--nproc-per-node=1", *meeting, "-m", *pretraining(config)]
    command = supervised(config, command, "--patience=20")
    log = config.run_folder.parent / f"node-{node}.log"
    return stack.enter_context(launched(network.on(node, command), log, GLOO_SOCKET_IFNAME="eth0"))


def steps(config: PretrainConfig) -> int:
    """Return the newest step of which there are metrics."""
    return int(max((line["step"] for line in read_metrics(config.run_folder)), default=0))


@pytest.mark.parametrize(("seconds", "timeout_s"), [(5, 60.0), (30, 60.0), (30, 15.0)])
def test_a_cable_that_was_pulled_for_a_while_costs_nothing_but_time(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, network: Network, seconds: int, timeout_s: float
) -> None:
    """A cut shorter than train.timeout_s is waited for; a longer one ends both nodes, and both are started anew."""
    config = run_of(tmp_path, simulated_shards, timeout_s)
    with ExitStack() as stack:
        nodes = [start(network, node, config, stack) for node in range(NODES)]
        nodes[0].wait_for_step(config.run_folder, 10, timeout_s=400)
        network.cut(1)
        reached = steps(config)
        time.sleep(seconds)
        assert steps(config) <= reached + 2 < total_steps(config)  # so it was cut in the midst of training
        network.join(1)
        for node in nodes:
            assert node.end(timeout_s=600) == 0, node.said()
        assert "starting again" in nodes[0].said() or seconds < timeout_s
    assert_same_bits(outcome(config.run_folder), undisturbed)


@pytest.mark.parametrize("lost", range(NODES))
def test_a_node_that_is_lost_and_comes_back_takes_the_run_up_again(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, network: Network, lost: int
) -> None:
    config = run_of(tmp_path, simulated_shards)
    with ExitStack() as stack:
        nodes = [start(network, node, config, stack) for node in range(NODES)]
        nodes[0].wait_for_step(config.run_folder, 10, timeout_s=400)
        network.cut(lost)  # a machine without power says no goodbye
        network.kill(lost)
        reached = steps(config)
        assert reached < total_steps(config)
        time.sleep(5)
        network.join(lost)
        nodes[lost] = start(network, lost, config, stack)
        for node in nodes:
            assert node.end(timeout_s=600) == 0, node.said()
    assert_same_bits(outcome(config.run_folder), undisturbed)
