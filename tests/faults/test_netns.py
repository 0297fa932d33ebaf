"""Two machines, as namespaces behind a switch: cables pulled and machines lost, and the same bits at the end."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.faulty_training import (
    Outcome,
    assert_same_bits,
    assert_same_run,
    read_outcome,
    start_ranks,
    wait_for_ranks,
)
from tests.support.network_namespaces import (
    NODES,
    Network,
    elastic_config,
    machine_config,
    run_on_machines,
    world_sizes,
)

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Outcome:
    """The outcome of a run on one machine."""
    config = machine_config(tmp_path_factory.mktemp("undisturbed") / "run", simulated_shards)
    assert wait_for_ranks(start_ranks(config, NODES), timeout_s=600) == [0] * NODES
    return read_outcome(config.run_folder)


@pytest.mark.parametrize(("seconds", "timeout_s"), [(5, 60.0), (30, 60.0), (30, 15.0)])
def test_a_cable_that_was_pulled_for_a_while_costs_nothing_but_time(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, network: Network, seconds: int, timeout_s: float
) -> None:
    """The ranks wait out a cut shorter than train.timeout_s; a longer one ends both nodes, and both start again."""
    config = machine_config(tmp_path / "run", simulated_shards, timeout_s)
    with run_on_machines(network, config) as both:
        both.wait_for_step(10)
        both.pull_cable(1, seconds)
        both.end()
        assert "restarting in" in both.started[0].output() or seconds < timeout_s
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.parametrize("lost", range(NODES))
def test_a_node_that_is_lost_and_comes_back_resumes_the_run(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, network: Network, lost: int
) -> None:
    config = machine_config(tmp_path / "run", simulated_shards)
    with run_on_machines(network, config) as both:
        both.wait_for_step(10)
        both.lose(lost)
        time.sleep(5)
        both.bring_back(lost)
        both.end()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_a_run_shrinks_when_a_machine_is_lost_and_grows_when_one_joins(
    tmp_path: Path, simulated_shards: Path, network: Network
) -> None:
    """torchrun --nnodes=1:2 allows it; the samples of each step stay the same throughout."""
    config = elastic_config(tmp_path / "run", simulated_shards)
    with run_on_machines(network, config, "1:2") as both:
        both.wait_for_step(10)
        both.lose(1)
        both.wait_for_step(both.step() + 8)
        both.bring_back(1)
        both.end()
    assert world_sizes(config.run_folder) == [2, 1, 2]
    undisturbed = replace(config, run_folder=tmp_path / "undisturbed")
    assert wait_for_ranks(start_ranks(undisturbed, NODES), timeout_s=600) == [0] * NODES
    assert_same_run(read_outcome(config.run_folder), read_outcome(undisturbed.run_folder))
