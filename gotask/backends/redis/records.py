"""Records of queues and workers: decided at the first shard, which alone has their versions.

The others judge pauses and limits by copies of the queues, and take changes only in the order in which they were made. One
that has missed a change gets all copies anew, from whoever sees that next.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from gotask.backends.redis.outage import Outage
from gotask.backends.redis.shards import Shards, named
from gotask.model import Queue, Record, Worker
from gotask.payload import check_text

R = TypeVar("R", Queue, Worker)

Run = Callable[..., Any]  #: root, verb, arguments -> answer


class Records:
    def __init__(self, shards: Shards, run: Run) -> None:
        self._first, *self._others = shards.roots
        self._run = run

    def put(self, record: Record, version: int | None) -> bool:
        check_text("name", record.name)
        body = msgspec.json.encode(record)
        change = self._run(self._first, "put", record.KIND, record.name, "" if version is None else version, body)
        if change and isinstance(record, Queue):
            self._copy(change, record.name, body)
        return bool(change)

    def drop(self, kind: type[R], name: str, version: int | None) -> bool:
        change = self._run(self._first, "discard", kind.KIND, named(name), "" if version is None else version)
        if change and kind is Queue:
            self._copy(change, name, b"")
        return bool(change)

    def get(self, kind: type[R], name: str) -> R | None:
        return next(iter(self._read(kind, named(name))), None)

    def all(self, kind: type[R]) -> list[R]:
        return sorted(self._read(kind), key=lambda record: record.name)

    def heal(self, changes: Mapping[str, int]) -> None:
        """Bring copies up to date, given the latest change that each shard knows of; those not given are left as they are."""
        for root in self._others:
            if self._first in changes and root in changes and changes[root] != changes[self._first]:
                self._renew(root)

    def _copy(self, change: int, name: str, body: bytes) -> None:
        """Tell the others of a change. It is decided already, so one that cannot be told hears of it later."""
        away = Outage()
        for root in self._others:
            with away:
                if not self._run(root, "copy", change, named(name), body):
                    self._renew(root)

    def _renew(self, root: str) -> None:
        change, *flat = self._run(self._first, "queues")
        self._run(root, "renew", change, *flat)

    def _read(self, kind: type[R], *names: bytes) -> list[R]:
        flat: Sequence[Any] = self._run(self._first, "records", kind.KIND, *names)
        found = []
        for at in range(0, len(flat), 3):
            record = msgspec.json.decode(flat[at + 2], type=kind)
            record.version = int(flat[at + 1])
            found.append(record)
        return found
