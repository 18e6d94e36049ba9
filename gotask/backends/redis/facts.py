"""What the servers of a Redis storage say of themselves, for `gotask doctor`: also one that would be refused."""

from statistics import median
from typing import Final, NamedTuple

from gotask import clock
from gotask.backends.redis.address import parse
from gotask.backends.redis.script import MICROSECONDS
from gotask.backends.redis.sentences import OLDEST, version_of
from gotask.backends.redis.server import Server

ASKED: Final = 5  #: times, for a round trip of which the middle one is told


class Facts(NamedTuple):
    """Of one server that takes writes."""

    version: str
    old: bool  #: older than GoTask needs
    policy: str  #: maxmemory-policy
    log: bool  #: whether it keeps an append-only file
    log_works: bool  #: whether it could write its files the last time
    replicas: int
    trip_s: float  #: seconds from a question to its answer
    ahead_s: float  #: seconds that its clock is ahead of this machine's
    used: int  #: bytes
    most: int  #: bytes, maxmemory; 0 is no limit


def look(url: str) -> list[Facts]:
    """Ask the servers that `url` names. Raises NotConfigured or BackendDown with the reason."""
    server = Server(parse(url))
    try:
        infos, trips = server.infos(), []
        for _ in range(ASKED):
            begun, now = clock.monotonic(), clock.now()
            infos = server.infos()
            trips.append((clock.monotonic() - begun) / len(infos))
        trip = median(trips)
        return [
            Facts(
                version=info["redis_version"],
                old=version_of(info) < OLDEST,
                policy=info.get("maxmemory_policy", "unknown"),
                log=bool(info.get("aof_enabled")),
                log_works=info.get("aof_last_write_status", "ok") == "ok" and info.get("rdb_last_bgsave_status", "ok") == "ok",
                replicas=info.get("connected_slaves", 0),
                trip_s=trip,
                ahead_s=info["server_time_usec"] / MICROSECONDS - (now + trips[-1] * (at + 0.5)),
                used=info["used_memory"],
                most=info.get("maxmemory", 0),
            )
            for at, info in enumerate(infos)
        ]
    finally:
        server.close()
