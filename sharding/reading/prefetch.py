"""Background downloads of the shards that coming steps need, in the order in which they need them."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from heapq import nlargest
from typing import Final, TypeVar

from infra.parallel.background import Background
from sharding.format.manifest import index_bytes
from sharding.reading.cache import CacheFull
from sharding.reading.open_shard import OpenShard
from sharding.reading.shard_set import ShardSet

T = TypeVar("T")

_ITEMS_AT_ONCE: Final = 8  # so that the first item of a long walk is not late
_MOST_SHARDS: Final = 256  # open at a time


class Prefetcher:
    """Walks through items and opens the remote shards of later ones in background threads meanwhile.

    One thread walks and reads; `close` may be called from any thread.
    """

    def __init__(self, shards: ShardSet, budget_bytes: int, most_items: int) -> None:
        """Prepare without downloading anything.

        Args:
            shards: the shards to open
            budget_bytes: largest number of bytes of remote shards that are open or downloading
            most_items: largest number of items to look ahead
        """
        self._shards, self._budget_bytes, self._most_items = shards, budget_bytes, most_items
        connections = shards.cache.fetcher.config.connections if shards.cache else 0
        self._background = Background(connections, "fetch")
        self._downloads: dict[int, Future[OpenShard]] = {}

    def close(self) -> None:
        """Cancel all downloads; code that waits for one gets CancelledError."""
        self._background.close()

    def walk(self, items: Iterable[T], needed_shards: Callable[[T], Iterable[int]]) -> Generator[T, None, None]:
        """Yield `items` while the shards of later ones are opened.

        A shard is released when none of the items looked at so far needs it any more. A shard beyond the budget is
        opened when it is read.
        """
        if self._shards.cache is None:
            yield from items
            return
        waiting: deque[tuple[T, list[int]]] = deque()
        users: Counter[int] = Counter()  # shard -> items in `waiting` that need it
        ahead = ((item, sorted(filter(self._shards.is_remote, set(needed_shards(item))))) for item in items)
        following = next(ahead, None)
        try:
            while True:
                for _ in range(_ITEMS_AT_ONCE):
                    if following is None or len(waiting) >= self._most_items:
                        break
                    new = [shard for shard in following[1] if shard not in users]
                    if waiting and not self._has_room([*users, *new]):
                        break
                    self._expect(new[:_MOST_SHARDS])
                    users.update(following[1])
                    waiting.append(following)
                    following = next(ahead, None)
                if not waiting:
                    return
                item, needed = waiting.popleft()
                yield item
                users.subtract(needed)
                for shard in [shard for shard in needed if not users[shard]]:
                    del users[shard]
                    self._release(shard)
        finally:
            for shard in users:
                self._release(shard)

    def shard(self, shard: int) -> OpenShard:
        """Return a shard as soon as it is open; raises like `ShardSet.shard`."""
        download = self._downloads.get(shard)
        if download is not None:
            with suppress(CacheFull):
                return download.result()
            self._downloads.clear()  # all others make room for this one
        return self._shards.shard(shard)

    def _has_room(self, shards: list[int]) -> bool:
        size_bytes = sum(_shard_bytes(self._shards, shard) for shard in shards)
        return size_bytes <= self._budget_bytes and len(shards) <= _MOST_SHARDS

    def _expect(self, shards: list[int]) -> None:
        for shard in shards:
            self._downloads[shard] = self._background.submit(partial(self._shards.open, shard, self._background.stop))

    def _release(self, shard: int) -> None:
        self._downloads.pop(shard, None)
        self._shards.release(shard)


def largest_bytes(shards: ShardSet, count: int) -> int:
    """Return the bytes that the `count` largest remote shards take in the cache."""
    remote = () if shards.cache is None else filter(shards.is_remote, range(len(shards.shards)))
    return sum(nlargest(count, (_shard_bytes(shards, shard) for shard in remote)))


def _shard_bytes(shards: ShardSet, shard: int) -> int:
    """Return the bytes that a shard and its index take in the cache."""
    return shards.shards[shard].size_bytes + index_bytes(shards.shards[shard])
