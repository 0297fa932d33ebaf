"""Network namespaces that act as machines behind a switch, and pretraining on two of them."""

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

from infra.monitoring.metrics import read_metrics
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
    """Nodes 0, 1 and so on: namespaces whose interface eth0 is cabled to a switch in a namespace of its own."""

    def __init__(self, nodes: int) -> None:
        token = uuid4().hex[:6]
        self._switch = f"sternum-{token}-switch"
        self._nodes = [f"sternum-{token}-{node}" for node in range(nodes)]

    def build(self) -> None:
        """Make the namespaces and cables.

        Raises:
            subprocess.CalledProcessError: if the kernel does not allow it.
        """
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
            self.plug_in(node)

    def address(self, node: int) -> str:
        return f"10.203.17.{node + 1}"

    def on(self, node: int, command: list[str]) -> list[str]:
        """Return a command that runs `command` on a node."""
        return ["ip", "netns", "exec", self._nodes[node], *command]

    def unplug(self, node: int) -> None:
        """Pull the cable of a node."""
        ip("-n", self._switch, "link", "set", f"port-{node}", "down")

    def plug_in(self, node: int) -> None:
        """Plug in the cable of a node."""
        ip("-n", self._switch, "link", "set", f"port-{node}", "up")

    def kill(self, node: int) -> None:
        """Kill all processes of a node; the other nodes do not notice while the cable is unplugged."""
        processes = [psutil.Process(pid) for pid in self._pids(self._nodes[node]) if psutil.pid_exists(pid)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)

    def _pids(self, name: str) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
        return [int(word) for word in listed.stdout.split()]

    def remove(self) -> None:
        """Kill all processes in the network, and remove it."""
        for node in range(len(self._nodes)):
            self.kill(node)
        for name in (self._switch, *self._nodes):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def machine_config(run: Path, shards: Path, timeout_s: float = 60.0, nodes: int = NODES) -> PretrainConfig:
    """Return the configuration of a run that needs all machines."""
    config = small_config(run, shards, "resnet18", epochs=6, timeout_s=timeout_s, world_size=nodes)
    return replace(config, checkpoints=CheckpointConfig(keep_last=2))


def elastic_config(run: Path, shards: Path) -> PretrainConfig:
    """Return the configuration of a run that continues on one machine, slow enough to lose and regain one meanwhile.

    It is ten times as long as `small_config`, so rounding errors grow for longer; the learning rate is a tenth.
    """
    config = small_config(run, shards, "resnet18", epochs=20, timeout_s=15.0)
    config = replace(config, views=ViewSpec(size_px=96), optim=OptimConfig(learning_rate=1e-6))
    return replace(config, checkpoints=CheckpointConfig(keep_last=2))


class Machines:
    """A run on both machines, each under `sternum supervise`; the rendezvous is on the first."""

    def __init__(self, network: Network, config: PretrainConfig, nodes: str, stack: ExitStack) -> None:
        self._network, self._config, self._nodes, self._stack = network, config, nodes, stack
        self.started = [self._start(node) for node in range(NODES)]

    def _start(self, node: int) -> LaunchedCommand:
        config = self._config
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={self._network.address(0)}:{PORT}", "--rdzv-id=test"]
        # With MIN:MAX machines, the first ones wait 5 s for more (torchrun waits 30 s by default).
        conf = f"is_host={'false' if node else 'true'},last_call_timeout=5"
        rendezvous += [f"--rdzv-conf={conf}", f"--local-addr={self._network.address(node)}"]
        command = [
            *TORCHRUN,
            f"--nnodes={self._nodes}",
            "--nproc-per-node=1",
            *rendezvous,
            "-m",
            *pretrain_arguments(config),
        ]
        command = self._network.on(node, supervise_command(config, command, "--patience=20"))
        log = config.run_folder.parent / f"{config.run_folder.name}-node-{node}.log"
        return self._stack.enter_context(launch(command, log, GLOO_SOCKET_IFNAME="eth0"))

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics have a line of this step."""
        self.started[0].wait_for_step(self._config.run_folder, step, timeout_s=400)

    def pull_cable(self, node: int, seconds: float) -> None:
        """Pull the cable of a machine for some seconds, during which the run must stop."""
        self._network.unplug(node)
        step = self.step()
        time.sleep(seconds)
        assert self.step() <= step + 2 < total_steps(self._config), "the cable was not pulled during training"
        self._network.plug_in(node)

    def lose(self, node: int) -> None:
        """Remove a machine at once, without a sign to the other, as a power failure does."""
        self._network.unplug(node)
        self._network.kill(node)
        assert self.step() < total_steps(self._config), "the machine was not lost during training"

    def bring_back(self, node: int) -> None:
        """Bring a machine back, and start its part of the run."""
        self._network.plug_in(node)
        self.started[node] = self._start(node)

    def step(self) -> int:
        """Return the newest step in the metrics, 0 without any."""
        return int(max((line["step"] for line in read_metrics(self._config.run_folder)), default=0))

    def end(self) -> None:
        """Wait until both machines have finished the run."""
        for machine in self.started:
            assert machine.end(timeout_s=600) == 0, machine.output()


@contextmanager
def run_on_machines(network: Network, config: PretrainConfig, nodes: str = str(NODES)) -> Iterator[Machines]:
    """Start the run on both machines, and kill it when the block ends; `nodes` is N or MIN:MAX, as for torchrun."""
    with ExitStack() as stack:
        yield Machines(network, config, nodes, stack)


def world_sizes(run: Path) -> list[int]:
    """Return the world sizes of a run, in order, without consecutive repeats."""
    lines = (run / "samples" / "rank-0.jsonl").read_text().splitlines()
    return [world for world, _ in groupby(json.loads(line)["world"] for line in lines)]


class NoNetwork(Exception):
    """Network namespaces cannot be made on this machine; the message says why."""


@contextmanager
def machine_network(nodes: int = NODES) -> Iterator[Network]:
    """Make a network that is removed, with all its processes, when the block ends.

    Raises:
        NoNetwork: if this machine does not allow it.
    """
    if os.geteuid() != 0:
        raise NoNetwork("network namespaces need root")
    if shutil.which("ip") is None:
        raise NoNetwork("network namespaces need the command `ip` of the package iproute2")
    network = Network(nodes)
    try:
        try:
            network.build()
        except subprocess.CalledProcessError as error:
            raise NoNetwork(f"network namespaces do not work on this machine: {error.stderr.strip()}") from error
        yield network
    finally:
        network.remove()
