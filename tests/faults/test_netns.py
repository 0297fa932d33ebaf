"""Two machines, as namespaces behind a switch: cables pulled and machines lost, and the same bits at the end."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from harness import Outcome, assert_same_bits, assert_same_run, end, outcome, small, total_steps
from harness import start as start_ranks
from network import NODES, Network, NoNetwork, reached, start, two_machines

from ssl_core.checkpoint_writer import CheckpointConfig
from ssl_core.train import PretrainConfig
from ssl_core.views.spec import ViewSpec

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(1500)]


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        with two_machines() as made:
            yield made
    except NoNetwork as error:
        pytest.skip(str(error))


def run_of(folder: Path, shards: Path, timeout_s: float = 60.0) -> PretrainConfig:
    config = small(folder / "run", shards, epochs=6, timeout_s=timeout_s, world_size=NODES)
    return replace(config, checkpoints=CheckpointConfig(keep_last=2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Outcome:
    """On one machine."""
    config = run_of(tmp_path_factory.mktemp("undisturbed"), simulated_shards)
    assert end(start_ranks(config, NODES), timeout_s=600) == [0] * NODES
    return outcome(config.run_folder)


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
        step = reached(config)
        time.sleep(seconds)
        assert reached(config) <= step + 2 < total_steps(config)  # so it was cut in the midst of training
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
        assert reached(config) < total_steps(config)
        time.sleep(5)
        network.join(lost)
        nodes[lost] = start(network, lost, config, stack)
        for node in nodes:
            assert node.end(timeout_s=600) == 0, node.said()
    assert_same_bits(outcome(config.run_folder), undisturbed)


def test_a_run_shrinks_when_a_machine_is_lost_and_widens_when_one_comes(
    tmp_path: Path, simulated_shards: Path, network: Network
) -> None:
    """As torchrun --nnodes=1:2 allows it: the same samples in the same steps all the way."""
    config = small(tmp_path / "run", simulated_shards, epochs=20, timeout_s=15.0)
    config = replace(config, views=ViewSpec(size_px=96), checkpoints=CheckpointConfig(keep_last=2))
    with ExitStack() as stack:
        nodes = [start(network, node, config, stack, "1:2") for node in range(NODES)]
        nodes[0].wait_for_step(config.run_folder, 10, timeout_s=400)
        network.cut(1)
        network.kill(1)
        step = reached(config)
        nodes[0].wait_for_step(config.run_folder, step + 8, timeout_s=400)
        network.join(1)
        nodes[1] = start(network, 1, config, stack, "1:2")
        for node in nodes:
            assert node.end(timeout_s=600) == 0, node.said()
    lines = (config.run_folder / "samples" / "rank-0.jsonl").read_text().splitlines()
    assert [world for world, _ in groupby(json.loads(line)["world"] for line in lines)] == [2, 1, 2]
    undisturbed = replace(config, run_folder=tmp_path / "undisturbed")
    assert end(start_ranks(undisturbed, NODES), timeout_s=600) == [0] * NODES
    assert_same_run(outcome(config.run_folder), outcome(undisturbed.run_folder))
