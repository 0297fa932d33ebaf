"""Where parallel work runs: in processes of this machine, or on a Ray cluster."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from infra.parallel.process_map import ordered_map, worker_count

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Workers:
    """The workers of a command.

    Attributes:
        processes: processes of this machine; 0 means one for each CPU that this process may use
        address: a Ray cluster that works instead, as `infra.parallel.ray_session` takes it; None for this machine
    """

    processes: int = 0
    address: str | None = None

    def map(
        self,
        function: Callable[[A], B],
        items: Iterable[A],
        total: int,
        chunk: int = 1,
        crashed: Callable[[A], B] | None = None,
        unread: Callable[[A, B], str | None] | None = None,
        *,
        whole_machines: bool = False,
    ) -> Generator[B]:
        """Yield function(item) for each item, in the order of the items. Close the iterator if you leave it early.

        Few items are computed ahead of the consumer, so memory is bounded however slow it is.

        Args:
            function: the function; it and the items must pickle
            items: the items
            total: number of items
            chunk: items that a worker gets at a time
            crashed: returns the result for an item that kills each process that works on it; None raises RunFailed
            unread: returns the file that this machine can read although a node's result says otherwise, else None
            whole_machines: give the function a GPU, or all cores of a node without GPUs; for clusters only

        Raises:
            UserError: if the cluster cannot be joined
            RunFailed: if a worker dies and `crashed` is None, or a node cannot read a file; an error of `function` is
                raised as it is, and names the node of a cluster
        """
        if self.address is None or total == 0:
            return ordered_map(function, items, worker_count(self.processes, total, chunk), chunk, crashed)
        from infra.parallel.ray_map import map_on_cluster  # noqa: PLC0415 (Ray is an extra)

        return map_on_cluster(function, items, self.address, chunk, crashed, unread, whole_machines=whole_machines)


HERE: Final = Workers()
