"""Large payloads and results on Redis: no call of the script takes many of them, since everybody waits for it."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from lab import LEASE_S, new
from msgspec import Raw

from gotask.backends import redis
from gotask.clock import now
from gotask.model import Filter, Settlement
from gotask.states import KEEP_S, Event, State
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

LARGE = Raw(b'"' + b"x" * 1_048_574 + b'"')
FEW = 5  #: large jobs that one call may take


@pytest.fixture
def server(start_redis: StartRedis) -> Redis:
    return start_redis()


@pytest.fixture
def later() -> list[float]:
    """Seconds that the clock of the store is ahead."""
    return [0.0]


@pytest.fixture
def store(server: Redis, later: list[float]) -> Iterator[redis.Redis]:
    with closing(redis.open(f"{server.url}?timeout=20", lambda: now() + later[0])) as store:
        yield store


def calls(server: Redis, command: str = "evalsha") -> int:
    """How often a command was called since the statistics were reset."""
    facts = server.facts("INFO", "commandstats").get(f"cmdstat_{command}", "calls=0,")
    return int(facts.split("calls=")[1].split(",")[0])


def test_a_lease_of_large_jobs_comes_in_many_calls(server: Redis, store: redis.Redis) -> None:
    # Given large jobs in one queue, and small ones in another
    store.enqueue_many([new(id=f"large-{n:02}", payload=LARGE) for n in range(20)])
    store.enqueue_many([new(id=f"small-{n:03}", queue="small") for n in range(300)])
    # When all of them are wanted
    server.command("CONFIG", "RESETSTAT")
    jobs = store.lease({"default": 20, "small": 500}, "node-1", LEASE_S)
    # Then they come, the large ones in order, by calls that take few of them
    assert [job.id for job in jobs if job.queue == "default"] == [f"large-{n:02}" for n in range(20)]
    assert len(jobs) == 320
    assert calls(server) >= 20 / FEW
    assert store.lease({"default": 20, "small": 500}, "node-1", LEASE_S) == []
    assert store.counts() == {("default", State.RUNNING): 20, ("small", State.RUNNING): 300}


def test_an_old_job_has_its_turn_among_large_ones(store: redis.Redis) -> None:
    store.enqueue_many([new(id="old", priority=0)])
    store.enqueue_many([new(priority=9, payload=LARGE) for _ in range(30)])
    assert "old" in [job.id for job in store.lease({"default": 28}, "node-1", LEASE_S)]


def test_one_call_leases_so_many_of_all_queues_together(server: Redis, store: redis.Redis) -> None:
    for queue in "abc":
        store.enqueue_many([new(queue=queue) for _ in range(200)])
    server.command("CONFIG", "RESETSTAT")
    jobs = store.lease(dict.fromkeys("abc", 150), "node-1", LEASE_S)
    assert sorted(job.queue for job in jobs) == ["a"] * 150 + ["b"] * 150 + ["c"] * 150
    assert calls(server) == 3


def test_a_queue_that_is_out_leaves_the_others_what_they_want(store: redis.Redis) -> None:
    store.enqueue_many([new(queue="a")] + [new(queue="b") for _ in range(900)])
    jobs = store.lease({"a": 100, "b": 800}, "node-1", LEASE_S)
    assert sorted(job.queue for job in jobs) == ["a"] + ["b"] * 800


def test_lists_of_large_jobs_come_in_many_calls(server: Redis, store: redis.Redis) -> None:
    # Given jobs that have ended with large results, and small ones of another type between them
    store.enqueue_many([new(id=f"j{n:02}", type="even" if n % 2 else "odd", payload=LARGE) for n in range(20)])
    for job in store.lease({"default": 20}, "node-1", LEASE_S):
        store.settle_many([Settlement(job.id, job.lease, Event.ACK, result=bytes(LARGE))])
    # When they are listed, or read by their ids
    for asked, expected in (
        (Filter(limit=15), [f"j{n:02}" for n in range(19, 4, -1)]),
        (Filter(type="odd"), [f"j{n:02}" for n in range(18, -1, -2)]),
        (Filter(status=State.SUCCESS, offset=16, limit=2), ["j03", "j02"]),
    ):
        server.command("CONFIG", "RESETSTAT")
        found = store.find(asked).jobs
        # Then all of them are there, by calls that look at few of them
        assert [job.id for job in found] == expected
        assert all(job.result == LARGE for job in found)
        assert calls(server) >= 15 / FEW
    server.command("CONFIG", "RESETSTAT")
    assert all(store.get_many([f"j{n:02}" for n in range(20)] * 6))
    assert calls(server) == 3


def test_a_result_is_not_read_to_be_forgotten(server: Redis, store: redis.Redis, later: list[float]) -> None:
    # Given jobs that have ended with large results, long ago
    store.enqueue_many([new() for _ in range(10)])
    for job in store.lease({"default": 10}, "node-1", LEASE_S):
        store.settle_many([Settlement(job.id, job.lease, Event.ACK, result=bytes(LARGE))])
    later[0] = KEEP_S[State.SUCCESS] + 1
    # When they are forgotten
    server.command("CONFIG", "RESETSTAT")
    sent = int(server.facts("INFO", "stats")["total_net_output_bytes"])
    assert store.tick().pruned == 10
    # Then nothing has read the whole of them
    assert calls(server, "hgetall") == calls(server, "hget") == 0
    assert int(server.facts("INFO", "stats")["total_net_output_bytes"]) - sent < 20_000
    assert store.counts() == {}
