"""The map over a real Ray cluster of two nodes, of which one dies; the nodes call functions of libraries."""

import json
import subprocess
import sys
from typing import Any

import pytest

from infra.versions import versions
from tests.support.ray_cluster import ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# All in one process, because Ray takes seconds to start.
SCRIPT = """
import json, operator, signal, sys, time
from contextlib import closing
from functools import partial
from itertools import count

import infra.parallel.ray_map
from infra.errors import require
from infra.parallel.ray_session import ray_session
from infra.parallel.workers import Workers

cluster = Workers(address=sys.argv[1])
seen = {}

def error_of(function, item, **options):
    try:
        list(cluster.map(function, [item], 1, **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

with ray_session(address=sys.argv[1]):
    items = count()
    with closing(cluster.map(operator.neg, items, 10**6, chunk=3)) as results:
        seen["first"] = [next(results) for _ in range(100)]
    seen["taken"] = next(items)
    blocks = [["large " * 500] * 50, ["small"] * 50] * 10
    mixed = [item for block in blocks for item in block]
    for _ in range(2):  # the first time, the processes of the nodes start
        seen["began"] = list(cluster.map(lambda item: (time.time(), time.sleep(0.02))[0], mixed, len(mixed)))
    signals = [signal.SIGURG] * 20 + [signal.SIGKILL] + [signal.SIGURG] * 5
    died = "died of {}".format
    seen["killed"] = list(cluster.map(signal.raise_signal, signals, len(signals), chunk=3, crashed=died))
    seen["user"] = error_of(partial(require, False), "x=1 must be 2; try 2")
    seen["value"] = error_of(int, "x")
    seen["died"] = error_of(signal.raise_signal, signal.SIGKILL)
    seen["unread"] = error_of(str, "a.png", unread=lambda item, result: item)
    for number, _ in enumerate(cluster.map(time.sleep, [0.02] * 1000, 1000, chunk=2)):
        if number == 50:
            print("kill", flush=True)
    seen["slept"] = number
    there = infra.parallel.ray_map.versions()
    infra.parallel.ray_map.versions = lambda: there | {"pillow": "1.0"}
    seen["other"] = error_of(str, "a.png")
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    with ray_cluster(nodes=2) as cluster:
        command = [sys.executable, "-c", SCRIPT, cluster.address]
        with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:  # Ray prints too
                if line == "kill\n":
                    cluster.kill(1)
            last = line
        assert process.returncode == 0
        found: dict[str, Any] = json.loads(last)
        return found


def test_results_are_in_the_order_of_the_items_and_few_items_are_taken_ahead(seen: dict[str, Any]) -> None:
    assert seen["first"] == [-number for number in range(100)]
    assert seen["taken"] <= 100 + (4 * 2 + 1) * 512  # four tasks for each of two cores, of at most 512 items


def test_tasks_of_large_items_are_not_overtaken(seen: dict[str, Any]) -> None:
    began = seen["began"]
    overtakers = [sum(later < began[place] for later in began[place:]) for place in range(len(began))]
    assert max(overtakers) < 100  # the items of two tasks, because two run at the same time


def test_an_item_that_kills_its_process_is_found_and_the_others_are_computed(seen: dict[str, Any]) -> None:
    assert seen["killed"] == [None] * 20 + ["died of 9"] + [None] * 5


def test_a_node_that_dies_loses_nothing(seen: dict[str, Any]) -> None:
    assert seen["slept"] == 999


def test_errors_name_the_node_or_are_those_of_the_function(seen: dict[str, Any]) -> None:
    node = "node 127.0.0.1 of the Ray cluster"
    assert seen["user"] == f"UserError: {node}: x=1 must be 2; try 2"
    assert seen["value"] == "ValueError: invalid literal for int() with base 10: 'x'"
    assert seen["died"].startswith("RunFailed: a task failed 4 times on the cluster: ")
    assert seen["unread"] == (
        f"RunFailed: a.png: {node} cannot read it, but this machine can; mount the disk under the same path on every "
        "node"
    )
    different = f"pillow {versions()['pillow']} instead of 1.0"
    assert seen["other"] == f"UserError: {node}: it has {different}; install the same versions on every node"
