"""Background threads that prepare the next items while the current one is in use."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

_POLL_S: Final = 0.05


class _End(Generic[T]):
    """The last entry of the queue: all items were read, or `error` ended the reading."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(
    items: Iterable[T], depth: int, interrupt: Callable[[], object] | None = None
) -> Generator[T, None, None]:
    """Yield `items` while a background thread prepares the next ones.

    An error in `items` is raised here, after the items that precede it. Closing this generator calls `interrupt`, then
    ends the thread and closes `items` in that thread before it returns.

    Args:
        items: the items, read in the background thread
        depth: largest number of items that wait to be yielded
        interrupt: wakes `items` up if it is waiting for something
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
        if interrupt is not None:
            interrupt()
        thread.join()


def _fill(ready: "queue.Queue[T | _End[T]]", items: Iterable[T], stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not _put(ready, item, stop):
                break
    except BaseException as caught:  # any error is for the thread that waits for the items
        error = caught
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    _put(ready, _End(error), stop)


def _put(ready: "queue.Queue[T | _End[T]]", item: T | _End[T], stop: threading.Event) -> bool:
    """Put an item as soon as there is room; return False if the reader is gone."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False


def call_within(timeout_s: float, function: Callable[[], T], discard: Callable[[T], object]) -> T:
    """Call a function in a daemon thread and wait at most `timeout_s` seconds for its result.

    Args:
        timeout_s: how long to wait
        function: what to call; it goes on in its thread if nobody waits any longer
        discard: receives a result that comes too late

    Raises:
        TimeoutError: if there is no result by then
    """
    future: Future[T] = Future()
    threading.Thread(target=_call, args=(future, function), name="call-within", daemon=True).start()
    done, _ = wait([future], timeout_s)
    if not done:
        future.add_done_callback(lambda late: None if late.exception() else discard(late.result()))
        raise TimeoutError(f"no result within {timeout_s:g} s")
    return future.result()


class Background:
    """A few daemon threads that call functions in the order in which they were submitted.

    Unlike concurrent.futures, neither `close` nor the end of the process waits for a call that hangs.

    Attributes:
        stop: set by `close`; a function may watch it and end early
    """

    def __init__(self, threads: int, name: str) -> None:
        self.stop = threading.Event()
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._most_threads, self._name = threads, name

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Call a function in the background and return its future, which is canceled if this object is closed."""
        future: Future[T] = Future()
        with self._lock:
            if self.stop.is_set():
                future.cancel()
                return future
            self._unfinished.add(future)
            if len(self._threads) < self._most_threads:
                self._threads.append(threading.Thread(target=self._work, name=self._name, daemon=True))
                self._threads[-1].start()
        future.add_done_callback(self._unfinished.discard)
        self._tasks.put((future, function))
        return future

    def close(self) -> None:
        """Cancel all unfinished calls; waiting for one then raises CancelledError."""
        with self._lock:
            self.stop.set()
            unfinished = list(self._unfinished)
        for future in unfinished:
            future.cancel()
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _call(*task)
            del task  # otherwise it would keep the result alive until the next task


def _call(future: Future[T], function: Callable[[], T]) -> None:
    """Call a function and set its future, unless the future is canceled before or meanwhile."""
    if future.cancelled():
        return
    with suppress(InvalidStateError):
        try:
            result = function()
        except BaseException as error:  # any error is for the thread that waits
            future.set_exception(error)
        else:
            future.set_result(result)
