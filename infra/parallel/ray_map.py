"""A map over the nodes of a Ray cluster that keeps the order of its items, as `process_map` does over processes."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.parallel.ray_session import ray_session, reason_of
from infra.versions import differences, versions

A = TypeVar("A")
B = TypeVar("B")

_TASKS_IN_FLIGHT: Final = 4  # for each that can run at the same time
_TASK_S: Final = 1.0  # because a task costs Ray some 25 ms of CPU time on all nodes together
_MOST_ITEMS: Final = 512  # of a task
_ITEMS_AN_ARGUMENT: Final = 16  # below 100 kB as long as an item is below 6 kB
_RETRIES: Final = 3  # of a task whose process or node dies
_COUNT_EVERY_S: Final = 1.0


def map_on_cluster(
    function: Callable[[A], B],
    items: Iterable[A],
    address: str,
    chunk: int = 1,
    crashed: Callable[[A], B] | None = None,
    unread: Callable[[A, B], str | None] | None = None,
    *,
    whole_machines: bool = False,
) -> Generator[B]:
    """Yield function(item) for each item, in the order of the items; the arguments are those of `Workers.map`.

    A task that loses its process, its node or its results is repeated elsewhere. The nodes need the packages of this
    machine, and see its files under the same paths.
    """
    with ray_session(address=address):
        import ray  # noqa: PLC0415 (after its environment is set)

        cluster = _Cluster(function, _share_of_a_machine(ray.nodes()) if whole_machines else {"CPU": 1})
        remaining = iter(items)
        pending: deque[tuple[list[A], Any]] = deque()
        try:
            while True:
                most = cluster.most_in_flight()
                count = chunk if whole_machines else cluster.items_a_task(chunk)
                while len(pending) < most and (batch := list(islice(remaining, count))):
                    pending.append((batch, cluster.submit(batch)))
                if not pending:
                    return
                for item, node, result in cluster.results(*pending.popleft(), crashed):
                    if unread is not None and (path := unread(item, result)) is not None:
                        raise RunFailed(
                            f"{path}: node {node} of the Ray cluster cannot read it, but this machine can; mount the "
                            "disk under the same path on every node"
                        )
                    yield result
        finally:
            for _, task in pending:
                ray.cancel(task)


class _Cluster(Generic[A, B]):
    """Tasks of the joined cluster, which call one function."""

    def __init__(self, function: Callable[[A], B], resources: Mapping[str, int]) -> None:
        """Send the function to the cluster; each task takes these resources of a node."""
        import ray  # noqa: PLC0415

        self._resources = resources
        self._work = ray.put(_Work(function, Path.cwd(), versions()))
        options = {f"num_{name.lower()}s": count for name, count in resources.items()}
        # Without max_calls, Ray starts a process for each task that takes a GPU.
        self._task = ray.remote(**options, max_retries=_RETRIES, max_calls=0)(_on_node)
        self._most, self._counted_s = 0, float("-inf")
        self._items_per_s = 0.0  # of the last finished task

    def most_in_flight(self) -> int:
        """Return how many tasks may be under way or wait to be consumed; nodes come and go."""
        import ray  # noqa: PLC0415

        if time.monotonic() - self._counted_s > _COUNT_EVERY_S:
            present = ray.cluster_resources()
            at_once = min(present.get(name, 0) // count for name, count in self._resources.items())
            self._most, self._counted_s = _TASKS_IN_FLIGHT * max(1, int(at_once)), time.monotonic()
        return self._most

    def items_a_task(self, least: int) -> int:
        """Return how many items keep a task busy for about a second, which also bounds the size of its results."""
        return max(least, min(_MOST_ITEMS, int(self._items_per_s * _TASK_S)))

    def submit(self, batch: Sequence[A]) -> Any:
        """Start a task for these items.

        They travel in several arguments. Ray stores an argument above 100 kB as an object, and then the task has to
        wait for a node of its own while tasks without such an argument overtake it.
        """
        parts = [batch[start : start + _ITEMS_AN_ARGUMENT] for start in range(0, len(batch), _ITEMS_AN_ARGUMENT)]
        return self._task.remote(self._work, *parts)

    def results(self, batch: Sequence[A], task: Any, crashed: Callable[[A], B] | None) -> Iterator[tuple[A, str, B]]:
        """Yield for each item of a task the item, the node that computed its result, and the result.

        If the task's process died each time, its items are tried one by one, to find the one that ends its process.
        """
        import ray  # noqa: PLC0415

        try:
            node, took_s, results = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise _raised_on_node(error) from error
        except ray.exceptions.RayError as error:
            if len(batch) > 1:
                say(f"warning: a task on the cluster failed ({reason_of(error)}); its items are done again, one by one")
                for item in batch:
                    yield from self.results([item], self.submit([item]), crashed)
            elif crashed is not None and isinstance(error, ray.exceptions.WorkerCrashedError):
                yield batch[0], "", crashed(batch[0])
            else:
                raise RunFailed(
                    f"a task failed {_RETRIES + 1} times on the cluster: {reason_of(error)}; see the logs of its nodes"
                ) from error
        else:
            self._items_per_s = len(batch) / max(took_s, 1e-3)
            yield from zip(batch, repeat(node), results, strict=False)


@dataclass(frozen=True)
class _Work(Generic[A, B]):
    """What a node needs to know of this machine.

    Attributes:
        function: the function to call
        folder: the working folder, to which paths may be relative
        versions: the versions that results depend on
    """

    function: Callable[[A], B]
    folder: Path
    versions: dict[str, str]


def _on_node(work: _Work[A, B], *parts: Sequence[A]) -> tuple[str, float, list[B]]:
    """Return the address of this node, the seconds of the work, and the results; errors for the user name the node."""
    import ray  # noqa: PLC0415

    address = ray.util.get_node_ip_address()
    try:
        different = differences(work.versions, versions())
        require(not different, f"it has {', '.join(different)}; install the same versions on every node")
        with suppress(OSError):  # then relative paths are not found, which `unread` reports
            os.chdir(work.folder)
        began_s = time.perf_counter()
        results = [work.function(item) for part in parts for item in part]
        return address, time.perf_counter() - began_s, results
    except (UserError, RunFailed) as error:
        raise type(error)(f"node {address} of the Ray cluster: {error}") from error


def _raised_on_node(error: Any) -> Exception:
    """Return the error that the function raised on a node, without Ray's wrapping."""
    cause: Exception | None = error.cause
    if isinstance(cause, ImportError):
        return RunFailed(f"a node of the Ray cluster misses a package: {cause}; install the same ones on every node")
    return error if cause is None else cause


def _share_of_a_machine(nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what a task takes of a machine: one GPU with its part of the cores, or without GPUs all cores."""
    machines = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus:
        cores = min(int(machine["CPU"] / machine["GPU"]) for machine in with_gpus)
        return {"GPU": 1, "CPU": max(1, cores)}
    return {"CPU": max(1, min((int(machine["CPU"]) for machine in machines), default=1))}
