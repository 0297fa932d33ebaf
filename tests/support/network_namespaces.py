"""Two machines, as network namespaces behind a switch, and a pretraining that runs on both."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import psutil

from infra.metrics import read_metrics
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.spec import ViewSpec
from tests.support.faulty_training import small_config, total_steps
from tests.support.launchers import TORCHRUN, LaunchedCommand, launch, pretrain_arguments, supervise_command

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


def two_machine_config(run: Path, shards: Path, timeout_s: float = 60.0) -> PretrainConfig:
    """A run that needs both machines."""
    config = small_config(run, shards, epochs=6, timeout_s=timeout_s, world_size=NODES)
    return replace(config, checkpoints=CheckpointConfig(keep_last=2))


def elastic_config(run: Path, shards: Path) -> PretrainConfig:
    """A run that goes on with what there is, slow enough that a machine may go and another come meanwhile.

    It is ten times as long as `small`, and rounding has as much longer to grow: hence a tenth of its learning rate.
    """
    config = small_config(run, shards, epochs=20, timeout_s=15.0)
    config = replace(config, views=ViewSpec(size_px=96), optim=OptimConfig(learning_rate=1e-6))
    return replace(config, checkpoints=CheckpointConfig(keep_last=2))


class Machines:
    """Both machines with a run on them, each under `sternum supervise`; the first is the one that all meet at."""

    def __init__(self, network: Network, config: PretrainConfig, nodes: str, stack: ExitStack) -> None:
        self._network, self._config, self._nodes, self._stack = network, config, nodes, stack
        self.started = [self._start(node) for node in range(NODES)]

    def _start(self, node: int) -> LaunchedCommand:
        config = self._config
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={self._network.address(0)}:{PORT}", "--rdzv-id=test"]
        # With MIN:MAX machines, those that are there wait 5 s (torchrun's own default is 30) for more.
        conf = f"is_host={'false' if node else 'true'},last_call_timeout=5"
        meeting += [f"--rdzv-conf={conf}", f"--local-addr={self._network.address(node)}"]
        command = [
            *TORCHRUN,
            f"--nnodes={self._nodes}",
            "--nproc-per-node=1",
            *meeting,
            "-m",
            *pretrain_arguments(config),
        ]
        command = self._network.on(node, supervise_command(config, command, "--patience=20"))
        log = config.run_folder.parent / f"{config.run_folder.name}-node-{node}.log"
        return self._stack.enter_context(launch(command, log, GLOO_SOCKET_IFNAME="eth0"))

    def wait_for_step(self, step: int) -> None:
        """Return when there are metrics of this step."""
        self.started[0].wait_for_step(self._config.run_folder, step, timeout_s=400)

    def pull_cable(self, node: int, seconds: float) -> None:
        """Pull a machine's cable for a while, in which the run stands still."""
        self._network.cut(node)
        step = self.step()
        time.sleep(seconds)
        assert self.step() <= step + 2 < total_steps(self._config), "it was not cut in the midst of training"
        self._network.join(node)

    def lose(self, node: int) -> None:
        """Take a machine away at once: one without power says no goodbye."""
        self._network.cut(node)
        self._network.kill(node)
        assert self.step() < total_steps(self._config), "it was not lost in the midst of training"

    def bring_back(self, node: int) -> None:
        """Give a machine back, and start its part of the run."""
        self._network.join(node)
        self.started[node] = self._start(node)

    def step(self) -> int:
        """Return the newest step of which there are metrics."""
        return int(max((line["step"] for line in read_metrics(self._config.run_folder)), default=0))

    def wait_for_ranks(self) -> None:
        """Wait until both have finished the run."""
        for machine in self.started:
            assert machine.end(timeout_s=600) == 0, machine.output()


@contextmanager
def run_on_machines(network: Network, config: PretrainConfig, nodes: str = str(NODES)) -> Iterator[Machines]:
    """Start the run on both machines; nothing of it outlives the block. nodes: what torchrun is told, N or MIN:MAX."""
    with ExitStack() as stack:
        yield Machines(network, config, nodes, stack)


def world_sizes(run: Path) -> list[int]:
    """Return the numbers of ranks that a run was trained by, one after the other."""
    lines = (run / "samples" / "rank-0.jsonl").read_text().splitlines()
    return [world for world, _ in groupby(json.loads(line)["world"] for line in lines)]


class NoNetwork(Exception):
    """Namespaces cannot be made here; says why."""


@contextmanager
def two_machine_network() -> Iterator[Network]:
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
