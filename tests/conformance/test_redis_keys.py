"""What lies in Redis: the keys that the script's header names and no others, and nothing of what is over."""

import re
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from typing import Final

import pytest
from lab import LEASE_S, Clock, new
from msgspec import Raw

from gotask.backends import redis
from gotask.errors import NotConfigured
from gotask.model import Beat, Job, Queue, Settlement, Worker
from gotask.states import Event, State
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

YEAR_S: Final = 365 * 86_400.0
QUEUES: Final = {
    "default": Queue(name="default"),
    "few": Queue(name="few", max_workers=3),
    "slow": Queue(name="slow", rate_limit=50.0, dead_letter_queue="dead"),
    "dead": Queue(name="dead", paused=True),
}
#: what a store keeps when all its jobs and records are gone: its sequences, and an empty log
LEFT: Final = re.compile(":(seq|lease|shards|change|log)")
#: every key, its type and its time to live, at one instant
ALL: Final = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = {key, redis.call('TYPE', key).ok, redis.call('TTL', key)}
end
return found
"""


class Place:
    """A store of `shards` in a server of its own, under a clock that the test moves, and all that was ever seen in it."""

    def __init__(self, server: Redis, shards: int) -> None:
        self.server, self.clock = server, Clock()
        self.url = f"{server.url}?shards={shards}"
        self.store = redis.open(self.url, self.clock)
        self.seen: dict[str, str] = {}  # key without its root -> type

    def look(self) -> set[str]:
        """All keys there are, without their roots; none of them ever has a time to live."""
        found = set()
        for key, kind, life in self.server.command("EVAL", ALL, 0):
            assert life == -1, f"{key} vanishes by itself"
            match = re.fullmatch(r"gotask:\{\d+\}(:.+)", key)
            assert match is not None, key
            self.seen[match[1]] = kind
            found.add(match[1])
        return found

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        while self.store.tick().next_in == 0:
            pass

    def lease(self, **wants: int) -> list[Job]:
        return self.store.lease(wants, "node-1", LEASE_S)


@pytest.fixture(params=[1, 4])
def place(start_redis: StartRedis, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(start_redis(), request.param)
    with closing(made.store):
        yield made


def live(place: Place) -> None:
    """Jobs in every state and on every way there, with all that one can say of them."""
    store = place.store
    for record in QUEUES.values():
        assert store.put(record)
    assert store.put(Worker(name="node-1", slots=8))
    store.enqueue_many([new(queue=queue, priority=n % 10) for n in range(60) for queue in ("default", "few", "slow")])
    store.enqueue_many([new(unique_key=f"key {n}", metadata={"n": "1"}, delay=5.0 * (n % 2)) for n in range(20)])
    store.enqueue_many([new(id=f"twice-{n}", unique_key=f"key {n}") for n in range(25)])
    store.enqueue_many([new(expires_at=None, id=f"later-{n}", delay=50.0) for n in range(10)])
    place.look()
    for round in range(6):
        jobs = place.lease(default=20, few=5, slow=10)
        waiting = store.watch([f"job:{job.id}" for job in jobs])
        store.extend_many([Beat(job.id, job.lease, 0.5, "half") for job in jobs], LEASE_S)
        place.look()
        events = [Event.ACK, Event.RETRY, Event.SNOOZE, Event.RELEASE, Event.BURY, None]
        ends = [(job, events[at % 6]) for at, job in enumerate(jobs)]
        store.settle_many(
            [
                Settlement(job.id, job.lease, end, error="e", result=b"1", due_in=2.0 if end is Event.RETRY else None)
                if end is not Event.BURY
                else Settlement(job.id, job.lease, end, error="e", queue="dead" if round % 2 else None)
                for job, end in ends
                if end is not None
            ]
        )
        lost = [job.id for job, end in ends if end is None]
        store.move_many(lost[::2], Event.CANCEL)
        place.look()
        place.tick(LEASE_S + 1)
        waiting.close()
        buried = [job.id for job, end in ends if end is Event.BURY]
        store.move_many(buried[::2], Event.REVIVE)
        store.drop_many(buried[1::2])
        place.look()


def end(place: Place) -> None:
    """Take every job to its end, and the records away."""
    store = place.store
    for _ in range(100):
        place.tick(LEASE_S + 1)
        jobs = place.lease(default=100, few=100, slow=100, dead=100)
        store.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs])
        if all(state in (State.SUCCESS, State.FAILED, State.CANCELLED) for _, state in store.counts()):
            break
    else:
        raise AssertionError(f"they never ended: {store.counts()}")
    place.look()
    place.tick(YEAR_S)
    for record in QUEUES.values():
        assert store.drop(Queue, record.name)
    assert store.drop(Worker, "node-1")


def documented() -> dict[str, str]:
    """Pattern of a key -> its type, as the head of the script has them."""
    text = files("gotask.backends.redis").joinpath("redis.lua").read_text()
    found = {}
    for names, kind in re.findall(r"^--   ((?::[\w:]+(?:, )?)+) +(hash|stream|zset|string|list) ", text, re.MULTILINE):
        found.update({re.sub("[A-Z]+$", ".+", name): kind for name in names.split(", ")})
    return found


def test_every_key_is_in_the_head_of_the_script(place: Place) -> None:
    # Given all that can happen to jobs
    live(place)
    end(place)
    # Then every key that was ever there is described, and of the type that is said
    patterns = documented()
    for key, kind in place.seen.items():
        assert [kind] == [type for pattern, type in patterns.items() if re.fullmatch(pattern, key)], key
    # And no key is described that is never there
    several = {":change", ":claims", ":claimed", ":freed", ":permits:.+"} if ":claims" not in place.seen else set()
    unseen = {pattern for pattern in patterns if not any(re.fullmatch(pattern, key) for key in place.seen)}
    assert unseen == several


def test_nothing_is_left_of_what_is_over(place: Place) -> None:
    # Given a store through which jobs have gone in every way
    live(place)
    end(place)
    # Then only a few keys are left, however many jobs there were
    left = place.look()
    assert not [key for key in left if not LEFT.fullmatch(key)]
    # And a second life leaves no more than the first
    live(place)
    end(place)
    assert place.look() == left
    for root in place.store._shards.roots:
        assert place.server.command("XLEN", f"{root}:log") == 0


def test_what_a_dead_node_held_of_a_limit_is_forgotten(place: Place) -> None:
    # Given a queue with a limit, whose jobs end otherwise than by their node: by a cancel, or as poison
    place.store.put(Queue(name="few", max_workers=3))
    place.store.enqueue_many([new(queue="few") for _ in range(9)])
    for _ in range(12):
        jobs = place.lease(few=9)
        assert len(jobs) <= 3
        place.store.move_many([job.id for job in jobs[:1]], Event.CANCEL)
        place.tick(LEASE_S + 1)
    assert {state for _, state in place.store.counts()} == {State.FAILED, State.CANCELLED}
    # When the queue is used again
    place.store.enqueue_many([new(queue="few")])
    (job,) = place.lease(few=9)
    place.store.settle_many([Settlement(job.id, job.lease, Event.ACK)])
    # Then no permit is left of those that died
    assert ":permits:few" not in place.look()


def test_finished_jobs_go_when_they_are_due_and_others_never(place: Place) -> None:
    # Given one job that ended, and jobs that did not
    place.store.enqueue_many([new(id="ends"), new(id="waits", priority=0), new(id="sleeps", delay=YEAR_S)])
    (job,) = place.store.lease({"default": 1}, "node-1", LEASE_S)
    place.store.settle_many([Settlement(job.id, job.lease, Event.ACK)])
    # When its time is nearly over, then it is there; later it is not
    place.tick(23.9 * 3600)
    assert None not in place.store.get_many(["ends", "waits", "sleeps"])
    place.tick(0.2 * 3600)
    found = place.store.get_many(["ends", "waits", "sleeps"])
    assert [one and one.status for one in found] == [None, State.PENDING, State.SCHEDULED]
    # And however long it takes, what did not end stays
    place.tick(YEAR_S - 2 * 86_400)
    assert None not in place.store.get_many(["waits", "sleeps"])
    place.look()


def test_two_prefixes_are_two_stores(start_redis: StartRedis) -> None:
    server = start_redis()
    with closing(redis.open(f"{server.url}?prefix=a")) as a, closing(redis.open(f"{server.url}?prefix=a:b&shards=2")) as b:
        # Given jobs of one id, key and queue in both
        for store in (a, b):
            assert store.enqueue_many([new(id="j", unique_key="k")])[0].outcome == "created"
            store.put(Queue(name="default", max_workers=1))
        # When one is led to its end
        watch = b.watch(["queue:default", "job:j"])
        (job,) = a.lease({"default": 5}, "node-1", LEASE_S)
        assert a.settle_many([Settlement("j", job.lease, Event.ACK)]) == [True]
        # Then the other has not noticed
        assert watch.wait(0.2) == set()
        assert b.counts() == {("default", State.PENDING): 1}
        assert [job.id for job in b.lease({"default": 5}, "node-1", LEASE_S)] == ["j"]
        watch.close()


BODY = Raw(b'{"to": "%s"}' % (b"x" * 90))


def test_a_queued_job_takes_little_memory(start_redis: StartRedis) -> None:
    server = start_redis()
    jobs = 10_000

    def used() -> int:
        return int(server.facts("INFO", "memory")["used_memory"])

    with closing(redis.open(server.url)) as store:
        store.enqueue_many([new(payload=BODY)])
        before = used()
        store.enqueue_many([new(payload=BODY) for _ in range(jobs)])
        each = (used() - before) / jobs
    assert each < 650, f"{each:.0f} bytes"


def test_a_number_of_shards_is_for_life(start_redis: StartRedis) -> None:
    server = start_redis()
    with closing(redis.open(f"{server.url}?shards=4")) as store:
        store.enqueue_many([new()])
    for shards, said in (("", 1), ("&shards=8", 8)):
        with pytest.raises(NotConfigured) as caught, closing(redis.open(f"{server.url}?timeout=1{shards}")) as store:
            store.counts()
        assert str(caught.value) == (
            f"The store 'gotask' at {server.url} has 4 shards, and the URL says {said}: that number is fixed for as long as a "
            "store lives, so say shards=4, or another prefix."
        )
    with closing(redis.open(f"{server.url}?prefix=other&shards=8")) as store:
        assert store.counts() == {}
