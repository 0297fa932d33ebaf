"""Two machines, as namespaces behind a switch: cables pulled and machines lost, and the same bits at the end."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.harness import Outcome, assert_same_bits, assert_same_run, end, outcome, start
from tests.support.network import NODES, Network, NoNetwork, machines, on_one_or_two, on_two, two_machines, world_sizes

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(1500)]


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        with two_machines() as made:
            yield made
    except NoNetwork as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Outcome:
    """On one machine."""
    config = on_two(tmp_path_factory.mktemp("undisturbed") / "run", simulated_shards)
    assert end(start(config, NODES), timeout_s=600) == [0] * NODES
    return outcome(config.run_folder)


@pytest.mark.parametrize(("seconds", "timeout_s"), [(5, 60.0), (30, 60.0), (30, 15.0)])
def test_a_cable_that_was_pulled_for_a_while_costs_nothing_but_time(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, network: Network, seconds: int, timeout_s: float
) -> None:
    """A cut shorter than train.timeout_s is waited for; a longer one ends both nodes, and both are started anew."""
    config = on_two(tmp_path / "run", simulated_shards, timeout_s)
    with machines(network, config) as both:
        both.wait_for_step(10)
        both.pull_cable(1, seconds)
        both.end()
        assert "starting again" in both.started[0].said() or seconds < timeout_s
    assert_same_bits(outcome(config.run_folder), undisturbed)


@pytest.mark.parametrize("lost", range(NODES))
def test_a_node_that_is_lost_and_comes_back_takes_the_run_up_again(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, network: Network, lost: int
) -> None:
    config = on_two(tmp_path / "run", simulated_shards)
    with machines(network, config) as both:
        both.wait_for_step(10)
        both.lose(lost)
        time.sleep(5)
        both.bring_back(lost)
        both.end()
    assert_same_bits(outcome(config.run_folder), undisturbed)


def test_a_run_shrinks_when_a_machine_is_lost_and_widens_when_one_comes(
    tmp_path: Path, simulated_shards: Path, network: Network
) -> None:
    """As torchrun --nnodes=1:2 allows it: the same samples in the same steps all the way."""
    config = on_one_or_two(tmp_path / "run", simulated_shards)
    with machines(network, config, "1:2") as both:
        both.wait_for_step(10)
        both.lose(1)
        both.wait_for_step(both.step() + 8)
        both.bring_back(1)
        both.end()
    assert world_sizes(config.run_folder) == [2, 1, 2]
    undisturbed = replace(config, run_folder=tmp_path / "undisturbed")
    assert end(start(undisturbed, NODES), timeout_s=600) == [0] * NODES
    assert_same_run(outcome(config.run_folder), outcome(undisturbed.run_folder))
