"""The shards of a store: which keys a job lies under.

With one shard everything is under one root. With more, the id of a job picks its shard for good, so that one queue spreads
over the masters of a Cluster and a job is found in one step. A root ends in a hash tag, whose slot decides the master.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Final
from zlib import crc32

from redis.crc import key_slot

SLOTS: Final = 16_384  #: of a Redis Cluster
FIRST: Final = "0"  #: tag of the root that says how many shards there are; the only root, if it is one


@lru_cache(maxsize=64)
def tags(n: int) -> tuple[str, ...]:
    """Hash tags for `n` shards: numbers whose slots lie in the n equal parts of a Cluster's slots, one in each."""
    if n == 1:
        return (FIRST,)
    found: dict[int, str] = {}
    for number in count():
        part = key_slot(str(number).encode()) * n // SLOTS
        found.setdefault(part, str(number))
        if len(found) == n:
            return tuple(found[at] for at in range(n))
    raise AssertionError("count() ended")


def named(name: str) -> bytes:
    """An id or a name as bytes; one that no UTF-8 can spell names nothing."""
    return name.encode("utf-8", "replace")


class Shards:
    def __init__(self, prefix: str, n: int) -> None:
        self.first = f"{prefix}:{{{FIRST}}}"
        self.roots = [f"{prefix}:{{{tag}}}" for tag in tags(n)]
        self.several = n > 1

    def of(self, name: str) -> str:
        """The root of a job by its id; of a limit by its queue, of a claim by its key."""
        return self.roots[crc32(named(name)) % len(self.roots)] if self.several else self.roots[0]

    def in_turn(self, turn: int) -> list[str]:
        """All roots, another one first in each turn."""
        at = turn % len(self.roots)
        return self.roots[at:] + self.roots[:at]

    def groups(self, ids: Sequence[str]) -> Iterator[tuple[str, Sequence[int]]]:
        """Roots, each with the positions of its ids."""
        if not self.several:
            yield self.roots[0], range(len(ids))
            return
        found: dict[str, list[int]] = {}
        for at, id in enumerate(ids):
            found.setdefault(self.of(id), []).append(at)
        yield from found.items()
