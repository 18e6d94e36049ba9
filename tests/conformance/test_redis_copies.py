"""A store of several shards in Redis: what one shard decides, and the others must come to know."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from lab import LEASE_S, new

from gotask.backends import redis
from gotask.errors import BackendDown
from gotask.model import Queue, Settlement
from gotask.states import Event
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

Run = Callable[..., Any]


@pytest.fixture
def server(start_redis: StartRedis) -> Redis:
    return start_redis()


@pytest.fixture
def store(server: Redis) -> Iterator[redis.Redis]:
    with closing(redis.open(f"{server.url}?shards=4")) as opened:
        yield opened


@pytest.fixture
def other(server: Redis) -> Iterator[redis.Redis]:
    with closing(redis.open(f"{server.url}?shards=4")) as opened:
        yield opened


def copies(store: redis.Redis) -> list[Any]:
    """What each shard has of the queues, without repeating what is the same."""
    found: list[Any] = []
    for root in store._shards.roots:
        change, *flat = store._run(root, "queues")
        had = change, dict(zip(flat[::2], flat[1::2], strict=True))
        if had not in found:
            found.append(had)
    return found


def test_two_who_change_a_queue_at_once_leave_one_record(store: redis.Redis, other: redis.Redis) -> None:
    # Given one who has paused a queue, and has not told the other shards yet
    copy = store._records._copy

    def interrupted(change: int, name: str, body: bytes) -> None:
        # When another resumes it in between, and tells them
        assert other.put(Queue(name="default"))
        copy(change, name, body)

    store._records._copy = interrupted  # type: ignore[method-assign]
    store.put(Queue(name="default", paused=True))
    # Then each shard has what was decided last, and all jobs can be leased
    assert store.get(Queue, "default") == Queue(name="default", version=2)
    assert len(copies(store)) == 1
    store.enqueue_many([new() for _ in range(40)])
    assert len(store.lease({"default": 40}, "node-1", LEASE_S)) == 40


@pytest.mark.parametrize("dropped", [False, True])
def test_a_change_that_did_not_reach_all_shards_does_so_later(store: redis.Redis, dropped: bool) -> None:
    # Given a shard that cannot be told of a change
    away = store._shards.roots[2]
    run = store._records._run

    def cut_off(root: str, verb: str, *arguments: Any) -> Any:
        if root == away:
            raise BackendDown("it is away")
        return run(root, verb, *arguments)

    assert store.put(Queue(name="default", paused=True))
    assert store.put(Queue(name="b"))
    store.enqueue_many([new() for _ in range(40)])
    store._records._run = cut_off
    # When the change is made, which is decided elsewhere
    assert store.drop(Queue, "default") if dropped else store.put(Queue(name="default"))
    assert len(copies(store)) == 2
    # Then the next change, or the next tick, brings it up to date
    store._records._run = run
    store.tick()
    assert len(copies(store)) == 1
    assert len(store.lease({"default": 40}, "node-1", LEASE_S)) == 40


def test_a_shard_that_missed_a_change_gets_all_with_the_next(store: redis.Redis, server: Redis) -> None:
    for n in range(5):
        store.put(Queue(name=f"q{n}"))
    # Given a shard that was set back, as by a failover
    server.command("DEL", f"{store._shards.roots[1]}:change", f"{store._shards.roots[1]}:queues")
    # When another queue is changed
    store.put(Queue(name="q5"))
    # Then it has all of them
    assert len(copies(store)) == 1
    assert len(copies(store)[0][1]) == 6


def test_a_first_shard_that_was_set_back_is_believed(store: redis.Redis, server: Redis) -> None:
    # Given a first shard that has lost its latest changes
    store.put(Queue(name="default"))
    for _ in range(5):
        store.put(Queue(name="default", paused=True))
    first = store._shards.roots[0]
    server.command("SET", f"{first}:change", 1)
    server.command("HSET", f"{first}:queues", "default", '{"name":"default"}')
    # When time goes on
    store.tick()
    # Then the others have what it has, and a change reaches them as ever
    assert len(copies(store)) == 1
    store.put(Queue(name="default", weight=3))
    assert len(copies(store)) == 1


def test_an_old_job_has_its_turn_in_a_queue_with_a_limit(store: redis.Redis) -> None:
    # Given an old job of low priority in a queue that always has others, all in the shard that decides on its limit
    store.put(Queue(name="few", max_workers=1000))
    home = store._shards.of("few")
    ids = [id for id in (f"j{n}" for n in range(2000)) if store._shards.of(id) == home]
    store.enqueue_many([new(id=ids[0], queue="few", priority=0)])
    store.enqueue_many([new(id=id, queue="few", priority=9) for id in ids[1:]])
    # When four are leased once, and then eight at a time
    leased = [job.id for job in store.lease({"few": 4}, "node-1", LEASE_S)]
    for _ in range(20):
        leased += [job.id for job in store.lease({"few": 8}, "node-1", LEASE_S)]
    # Then the old one is among them
    assert ids[0] in leased


def test_reservations_that_could_not_be_given_back_are_by_the_next(store: redis.Redis, server: Redis) -> None:
    # Given reservations of leases that failed
    store.put(Queue(name="few", max_workers=50))
    root = store._shards.of("few")
    owed = [("few", f"token{n}", int(store._run(root, "permit", "few", f"token{n}", 1, 60_000_000))) for n in range(50)]
    assert store.lease({"few": 1}, "node-1", LEASE_S) == []
    store._permits._owed += owed
    # When threads lease at once
    failures: list[BaseException] = []

    def lease() -> None:
        try:
            store.lease({"few": 1}, "node-1", LEASE_S)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=lease) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then each was given back once
    assert failures == []
    assert store._permits._owed == []
    assert server.command("ZCARD", f"{root}:permits:few") == 0


def test_who_waits_for_a_job_that_has_ended_is_told_at_once(store: redis.Redis, server: Redis) -> None:
    # Given somebody who waits, whose note was lost
    store.enqueue_many([new(id="j")])
    watch = store.watch(["job:j"])
    root = store._shards.of("j")
    server.command("DEL", f"{root}:waited")
    (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
    store.settle_many([Settlement(job.id, job.lease, Event.ACK)])
    assert watch.wait(0.2) == set()
    # When the note is made anew
    watch._noted_at = float("-inf")
    # Then the end is told
    assert watch.wait(5.0) == {"job:j"}
    # And told once
    watch._noted_at = float("-inf")
    assert watch.wait(0.2) == set()
    watch.close()
