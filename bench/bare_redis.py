"""The bare limit of Redis: what one client gets through if a job is three plain writes, and nothing is promised about it.

No fences, no counts, no priorities by name, no results, no doorbell, and no script: commands in pipelines, as quick as hiredis
makes and reads them.
"""

import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final

from hiredis import pack_command
from redis.connection import Connection

from tests.servers.redis import Redis

PIECE: Final = 200  #: jobs in one pipeline


class BareRedis:
    """A queue of one client: a hash and an entry of a stream for each job, and a sorted set of those that wait."""

    def __init__(self, server: Redis) -> None:
        self._link = Connection(port=server.port, protocol=2)
        self._link.connect()
        self._ids = count()

    def _ask(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        packed = [pack_command(command) for command in commands]
        self._link.send_packed_command([b"".join(packed)], check_health=False)
        return [self._link.read_response() for _ in packed]

    def _writes(self, payload: bytes) -> list[tuple[Any, ...]]:
        id = f"{next(self._ids):036}"
        return [
            ("HSETNX", f"bare:job:{id}", "seq", "1"),
            ("XADD", "bare:log", "*", "job", id, "payload", payload),
            ("ZADD", "bare:ready", 1, id),
        ]

    def fill(self, payload: bytes, jobs: int) -> float:
        """Accept so many in pipelines; how many a second."""
        begun = time.perf_counter()
        for _ in range(0, jobs, PIECE):
            self._ask([write for _ in range(PIECE) for write in self._writes(payload)])
        return jobs / (time.perf_counter() - begun)

    def one_by_one(self, payload: bytes, jobs: int) -> float:
        """Accept so many, each answered before the next, all or nothing; how many a second."""
        return _rate(jobs, lambda: self._ask([("MULTI",), *self._writes(payload), ("EXEC",)]))

    def drain(self, batch: int) -> float:
        """Lease and end all that wait: three writes each, and its payload read; jobs a second."""
        begun, ended = time.perf_counter(), 0
        while found := self._ask([("ZPOPMIN", "bare:ready", batch)])[0][::2]:
            self._ask([("HSET", b"bare:job:" + id, "status", "RUNNING", "lease", "1") for id in found])
            self._ask([("XRANGE", "bare:log", "-", "+", "COUNT", len(found))])
            self._ask([("HSET", b"bare:job:" + id, "status", "SUCCESS", "ended", "1") for id in found])
            self._ask([("ZADD", "bare:due", 1, id) for id in found])
            ended += len(found)
        return ended / (time.perf_counter() - begun)

    def close(self) -> None:
        self._link.disconnect()


def _rate(times: int, act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        act()
    return times / (time.perf_counter() - begun)
