"""Read ahead: let a background thread prepare the next items while the present one is used."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_POLL_S: Final = 0.05


class _End(Generic[T]):
    """The last thing in the queue: the items are used up, or `error` ended them."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Yield `items`, up to `depth` of which a background thread holds ready.

    What `items` raises is raised here, after the items before it. Closing this generator ends the thread and closes
    `items` (in that thread) before it returns.
    """
    ready: queue.Queue[T | _End[T]] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(ready, items, stop), name="read-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()


def _fill(ready: "queue.Queue[T | _End[T]]", items: Iterable[T], stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not _put(ready, item, stop):
                break
    except BaseException as caught:  # whatever it is, it belongs to the thread that waits for the items
        error = caught
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    _put(ready, _End(error), stop)


def _put(ready: "queue.Queue[T | _End[T]]", item: T | _End[T], stop: threading.Event) -> bool:
    """Put an item as soon as there is room; False when the reader has gone."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False
