"""Odd states of a store in Redis: piles of what expired, hashes deleted by hand, times at the end of time, lost permits."""

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime

import pytest
from lab import LEASE_S, Clock, new, until

from gotask import draft
from gotask.backends import redis
from gotask.errors import BackendDown, InvalidInput
from gotask.model import Beat, Filter, Queue, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

END_OF_TIME = datetime.max.replace(tzinfo=UTC)


@pytest.fixture
def server(start_redis: StartRedis) -> Redis:
    return start_redis()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(server: Redis, clock: Clock) -> Iterator[redis.Redis]:
    with closing(redis.open(server.url, clock)) as opened:
        yield opened


@pytest.fixture
def spread(server: Redis, clock: Clock) -> Iterator[redis.Redis]:
    """A store of four shards."""
    with closing(redis.open(f"{server.url}?prefix=spread&shards=4", clock)) as opened:
        yield opened


def test_a_pile_of_expired_jobs_is_passed_once(store: redis.Redis, clock: Clock) -> None:
    # Given thousands of jobs that have expired before the only one that has not
    soon = datetime.fromtimestamp(clock.now + 10, UTC)
    store.enqueue_many([new(expires_at=soon) for _ in range(10_000)])
    store.enqueue_many([new(id="good")])
    clock.now += 11
    # When a node asks for one job at a time
    begun, looks, found = time.monotonic(), 0, []
    while not found and looks < 50:
        found, looks = store.lease({"default": 1}, "node", LEASE_S), looks + 1
    # Then it has the good one after few looks, each short, and the others expire
    assert [job.id for job in found] == ["good"]
    assert looks <= 12
    assert time.monotonic() - begun < 5
    while store.tick().next_in == 0:
        pass
    assert store.counts() == {("default", State.EXPIRED): 10_000, ("default", State.RUNNING): 1}


def test_a_hash_that_was_deleted_by_hand_stands_in_nobodys_way(server: Redis, store: redis.Redis, clock: Clock) -> None:
    # Given jobs that wait, run, and will wake, whose hashes somebody deletes
    store.enqueue_many([new(id="ran")])
    assert store.lease({"default": 1}, "node", LEASE_S)
    store.enqueue_many([new(id="gone", unique_key="k"), new(id="later", delay=5.0)])
    for id in ("gone", "ran", "later"):
        server.command("DEL", f"gotask:{{0}}:job:{id}")
    # Then their queue goes on, their unique key is free, the clock ticks, and lists are lists
    answers = store.enqueue_many([new(id="a"), new(id="b", unique_key="k")])
    assert [answer.outcome for answer in answers] == ["created", "created"]
    assert [job.id for job in store.lease({"default": 9}, "node", LEASE_S)] == ["a", "b"]
    clock.now += LEASE_S
    store.tick()
    assert {job.id for job in store.find(Filter()).jobs} == {"a", "b"}
    assert store.find(Filter(status=State.RUNNING)).jobs == []


def test_no_time_is_too_late_to_be_read(store: redis.Redis) -> None:
    # Given that the door refuses what no store can keep
    with pytest.raises(InvalidInput, match="expires_at: a time in the years 1970 to 2999"):
        draft.check_times(new(expires_at=END_OF_TIME))
    # When it is stored all the same
    store.enqueue_many([new(id="j", expires_at=END_OF_TIME)])
    # Then nobody stumbles over it
    assert [job.id for job in store.find(Filter()).jobs] == ["j"]
    assert [job.id for job in store.lease({"default": 1}, "node", LEASE_S)] == ["j"]


def test_a_field_of_a_newer_version_is_passed_over(server: Redis, store: redis.Redis) -> None:
    store.enqueue_many([new(id="j")])
    server.command("HSET", "gotask:{0}:job:j", "invented_later", "x")
    assert [job.id for job in store.lease({"default": 1}, "node", LEASE_S)] == ["j"]


def test_a_revived_job_keeps_its_key_over_shards(spread: redis.Redis) -> None:
    # Given a job that ended, which frees its key at the next tick, and is revived before it
    spread.enqueue_many([new(id="a", unique_key="k")])
    assert spread.move_many(["a"], Event.CANCEL) == [True]
    assert spread.move_many(["a"], Event.REVIVE) == [True]
    spread.tick()
    # Then it has its key
    assert spread.enqueue_many([new(id="b", unique_key="k")])[0].job.id == "a"


def test_a_limit_counts_those_that_ran_before_it_over_shards(spread: redis.Redis) -> None:
    # Given five running jobs, and a limit of five from then on
    spread.enqueue_many([new() for _ in range(12)])
    running = spread.lease({"default": 5}, "node", LEASE_S)
    assert len(running) == 5
    spread.put(Queue(name="default", max_workers=5))
    # When their node has given a sign of life
    spread.extend_many([Beat(job.id, job.lease) for job in running], LEASE_S)
    # Then nothing more starts until one ends
    until(lambda: spread._permits.needed("default"), "the limit is known")
    assert spread.lease({"default": 9}, "node", LEASE_S) == []
    assert spread.settle_many([Settlement(running[0].id, running[0].lease, Event.ACK)]) == [True]
    assert len(spread.lease({"default": 9}, "node", LEASE_S)) == 1


def test_permits_of_a_lease_that_failed_are_handed_back(spread: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    spread.put(Queue(name="default", max_workers=2))
    spread.enqueue_many([new() for _ in range(9)])

    # Given a lease that fails after its permits were reserved
    def away(*_: object, **__: object) -> None:
        raise BackendDown

    with monkeypatch.context() as patch:
        patch.setattr(spread, "_lease_at", away)
        with pytest.raises(BackendDown):
            spread.lease({"default": 9}, "node", LEASE_S)
    # Then the next one has them
    assert len(spread.lease({"default": 9}, "node", LEASE_S)) == 2


def test_a_server_that_was_good_and_may_evict_now_is_said_loudly(server: Redis, store: redis.Redis) -> None:
    store.enqueue_many([new(id="j")])
    # Given that it comes back with another policy
    server.kill()
    with suppress(BackendDown):
        store.counts()
    server.start()
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    # Then each call says so, and goes on once it is set right
    with pytest.raises(BackendDown, match="may delete jobs when its memory is full"):
        store.enqueue_many([new(id="k")])
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert store.enqueue_many([new(id="k")])[0].outcome == "created"
