"""Shards of coming steps, fetched in the background in the order in which they will be needed."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from heapq import nlargest
from typing import Final, TypeVar

from infra.background import Background
from sharding.format.manifest import Shard, index_bytes
from sharding.reading.shard_set import ShardSet

T = TypeVar("T")

_WALKED_AT_ONCE: Final = 8  # items, so that the first of a long walk is not late
_MOST_SHARDS: Final = 256  # open at a time


def prefetched(
    shards: ShardSet,
    items: Iterable[T],
    needs: Callable[[T], Iterable[int]],
    *,
    budget_bytes: int,
    most_items: int,
    background: Background,
) -> Generator[T, None, None]:
    """Yield `items`, and have the shards that later ones need opened meanwhile.

    A shard is let go of when none of the items walked so far needs it any more. What is ahead of the present item is
    bounded by `budget_bytes` of shards from elsewhere and `most_items`; a shard beyond is opened when it is read.
    """
    if shards.cache is None:
        yield from items
        return
    waiting: deque[tuple[T, list[int]]] = deque()
    users: Counter[int] = Counter()  # shard -> items in `waiting` that need it
    ahead = ((item, sorted(filter(shards.is_remote, set(needs(item))))) for item in items)
    following = next(ahead, None)
    try:
        while True:
            for _ in range(_WALKED_AT_ONCE):
                if following is None or len(waiting) >= most_items:
                    break
                new = [shard for shard in following[1] if shard not in users]
                ahead_bytes = sum(shard_bytes(shards, shard) for shard in [*users, *new])
                if waiting and (ahead_bytes > budget_bytes or len(users) + len(new) > _MOST_SHARDS):
                    break
                for shard in new[:_MOST_SHARDS]:
                    shards.expect(shard, background.submit(partial(shards.open, shard, background.stop)))
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
                shards.let_go(shard)
    finally:
        for shard in users:
            shards.let_go(shard)


def shard_bytes(shards: ShardSet, shard: int) -> int:
    """Return what a shard and its index take in the cache."""
    entry: Shard = shards.shards[shard]
    return entry.size_bytes + index_bytes(entry)


def largest_bytes(shards: ShardSet, count: int) -> int:
    """Return what the `count` largest shards that have to be fetched take in the cache."""
    remote = () if shards.cache is None else filter(shards.is_remote, range(len(shards.shards)))
    return sum(nlargest(count, (shard_bytes(shards, shard) for shard in remote)))
