"""Unique keys of a store in several shards: what becomes of claims when their jobs end, begin anew, or never were."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from lab import LEASE_S, new
from shop import DOUBLE, Beside, Died, Halt, Shop, at_step, calls, claim_and_die, enqueue, once_claimed, opened

from gotask.backends import redis
from gotask.backends.redis import claims
from gotask.errors import BackendDown
from gotask.model import Settlement
from gotask.states import Event
from tests.servers.fixtures import StartRedis


@pytest.fixture
def shop(start_redis: StartRedis) -> Iterator[Shop]:
    with opened(start_redis()) as made:
        yield made


# jobs that end, and begin anew


def test_a_sweep_leaves_the_claim_of_a_job_that_was_revived_meanwhile(shop: Shop) -> None:
    # Given a job that has ended, and a sweep that has seen so
    store, sweeper = shop.store(), shop.store()
    enqueue(store, "a")
    store.move_many(["a"], Event.CANCEL)
    # When the job is revived before the sweep is done
    at_step(sweeper, "judged", before=lambda: store.move_many(["a"], Event.REVIVE))
    sweeper.tick()
    # Then it has its key
    assert shop.live() == ["a"]
    assert enqueue(store, "b") == ("duplicate", "a")


def test_a_job_that_is_about_to_be_revived_has_its_key(shop: Shop) -> None:
    # Given a revival that stands still after its claim
    store, other, sweeper = shop.store(), shop.store(), shop.store()
    enqueue(store, "a")
    store.move_many(["a"], Event.CANCEL)
    halt, seen = Halt(), Halt()
    once_claimed(store, halt)
    revival = Beside(lambda: store.move_many(["a"], Event.REVIVE))
    halt.reached()
    # When a sweep comes, and a producer
    sweeper.tick()
    at_step(other, "over", before=seen)
    producer = Beside(lambda: enqueue(other, "b"))
    seen.reached()
    # Then it is revived, and the producer has waited for it
    halt.go()
    assert revival.result() == [True]
    seen.go()
    assert producer.result() == ("duplicate", "a")


def test_a_revival_that_stood_still_makes_no_second_job(shop: Shop) -> None:
    # Given a revival that stands still after its claim, for too long
    store, other = shop.store(), shop.store()
    enqueue(store, "a")
    store.move_many(["a"], Event.CANCEL)
    halt = Halt()
    once_claimed(store, halt)
    revival = Beside(lambda: store.move_many(["a"], Event.REVIVE))
    halt.reached()
    shop.pass_claims()
    # When another job has got the key, then it is not revived
    assert enqueue(other, "b") == ("created", "b")
    halt.go()
    assert revival.result() == [False]
    assert shop.live() == ["b"]


def test_a_revival_is_not_of_another_job_of_the_same_id(shop: Shop) -> None:
    # Given a revival that stands still after its claim
    store, other = shop.store(), shop.store()
    enqueue(store, "a", "k")
    store.move_many(["a"], Event.CANCEL)
    halt = Halt()
    once_claimed(store, halt)
    revival = Beside(lambda: store.move_many(["a"], Event.REVIVE))
    halt.reached()
    # When its job is dropped, and another of that id has had another key, which is a third one's by now
    assert other.drop_many(["a"]) == [True]
    enqueue(other, "a", "another key")
    other.move_many(["a"], Event.CANCEL)
    assert enqueue(other, "b", "another key") == ("created", "b")
    # Then that other job is not revived
    halt.go()
    assert revival.result() == [False]
    assert shop.live("another key") == ["b"]


@pytest.mark.parametrize("end", ["dropped", "cancelled", "revived and cancelled", "acknowledged and forgotten"])
def test_the_key_of_a_job_that_is_over_is_free_at_once(shop: Shop, end: str) -> None:
    # Given a job that was made a moment ago, and is over
    store, other = shop.store(), shop.store()
    enqueue(store, "a")
    if end == "dropped":
        assert store.drop_many(["a"]) == [True]
    elif end.endswith("cancelled"):
        store.move_many(["a"], Event.CANCEL)
    else:
        (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
        store.settle_many([Settlement("a", job.lease, Event.ACK, due_in=0.0)])
        for root in store._shards.roots:
            store._run(root, "tick", 10)
        assert store.get_many(["a"]) == [None]
    if end.startswith("revived"):
        assert store.move_many(["a"], Event.REVIVE) == [True]
        store.move_many(["a"], Event.CANCEL)
    # Then nobody waits for its key, although no sweep has come
    claimed = calls(other, "claim")
    assert enqueue(other, "b") == ("created", "b")
    assert len(claimed) <= 3


def test_an_id_that_is_used_again_is_another_job(shop: Shop) -> None:
    store, other = shop.store(), shop.store()
    for _ in range(3):
        assert enqueue(store, "a") == ("created", "a")
        assert enqueue(other, "b") == ("duplicate", "a")
        assert store.drop_many(["a"]) == [True]
    assert enqueue(other, "b") == ("created", "b")
    assert enqueue(store, "a") == ("duplicate", "b")


# what is left


def test_a_claim_whose_job_was_never_made_is_forgotten(shop: Shop) -> None:
    # Given producers that died, some of them after another had taken over
    for n in range(20):
        claim_and_die(shop.store(), f"dead-{n}", f"k{n}")
    store = shop.store()
    store.tick()
    assert shop.left() > 0
    # When their time has passed, then nothing is left of them
    shop.pass_claims()
    store.tick()
    assert shop.left() == 0
    assert enqueue(store, "next", "k7") == ("created", "next")


def test_a_tick_says_that_there_is_more_to_sweep(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given more claims that are over than are looked into in one go
    monkeypatch.setattr(claims, "SWEPT", 5)
    store = shop.store()
    store.enqueue_many([new(id=f"j{n}", unique_key=f"k{n}") for n in range(90)])
    store.move_many([f"j{n}" for n in range(50)], Event.CANCEL)
    shop.pass_claims()
    # When ticks go on for as long as they are asked to, then only those of live jobs are left
    ticks = 1
    while store.tick().next_in == 0:
        ticks += 1
    assert 2 <= ticks <= 12
    assert sum(shop.server.command("HLEN", f"{root}:claims") for root in store._shards.roots) == 40
    assert all(shop.server.command("EXISTS", f"{root}:claimed", f"{root}:freed") == 0 for root in store._shards.roots)


def test_a_sweep_leaves_a_claim_that_was_taken_over_meanwhile(shop: Shop) -> None:
    store, sweeper = shop.store(), shop.store()
    claim_and_die(shop.store(), "dead")
    shop.pass_claims()
    at_step(sweeper, "judged", before=lambda: enqueue(store, "a"))
    sweeper.tick()
    assert enqueue(store, "b") == ("duplicate", "a")


def test_the_claim_of_a_job_stays_for_as_long_as_it_lives(shop: Shop) -> None:
    # Given a job that lives for longer than its claim was good
    store, other = shop.store(), shop.store()
    enqueue(store, "a")
    shop.pass_claims()
    store.tick()
    # Then it has its key, of which nothing is looked into any more
    assert enqueue(other, "b") == ("duplicate", "a")
    assert shop.left() == 1
    # And when it has ended, nothing is left
    store.move_many(["a"], Event.CANCEL)
    store.tick()
    assert shop.left() == 0


@pytest.mark.parametrize("ends", ["before a sweep", "during a sweep", "after a sweep"])
def test_a_claim_by_which_the_job_was_not_made_is_forgotten_with_it(shop: Shop, ends: str) -> None:
    # Given two calls that enqueue one job, of which the one that did not claim last has made it
    store, twin, sweeper = shop.store(), shop.store(), shop.store()
    at_step(twin, "claim", before=lambda: enqueue(store, "a"))
    assert enqueue(twin, "a") == ("duplicate", "a")

    def finish() -> None:
        store.move_many(["a"], Event.CANCEL)
        store._claims._sweep(store._shards.of("a"))

    # When it ends
    if ends == "before a sweep":
        finish()
    shop.pass_claims()
    if ends == "during a sweep":
        at_step(sweeper, "judged", before=finish)
    sweeper.tick()
    if ends == "after a sweep":
        sweeper.tick()
        assert shop.left() == 1  # the claim, of which nothing is looked into any more
        assert enqueue(sweeper, "b") == ("duplicate", "a")
        finish()
    # Then nothing is left
    sweeper.tick()
    assert shop.left() == 0


def test_no_key_is_ever_held_twice_and_nothing_is_left(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given claims that are good for a moment only, and producers that die, stand still, cancel, drop and revive
    monkeypatch.setattr(claims, "MARGIN_S", 0.0)
    stop = threading.Event()

    def produce(name: int) -> None:
        chance = random.Random(name)
        with closing(redis.open(f"{shop.server.url}?shards=4")) as store:
            store._claims._under_way_s = 0.01
            run = store._claims._run

            def frail(root: str, verb: str, *arguments: Any) -> Any:
                answer = run(root, verb, *arguments)
                if verb == "claim" and chance.random() < 0.5:
                    stop.wait(chance.uniform(0.0, 0.02))
                    if chance.random() < 0.3:
                        raise Died
                return answer

            store._claims._run = frail
            while not stop.is_set():
                id, key = f"j{chance.randrange(5)}", f"k{chance.randrange(2)}"
                with suppress(Died, BackendDown):
                    match chance.randrange(5):
                        case 0 | 1:
                            enqueue(store, id, key)
                        case 2:
                            store.move_many([id], Event.CANCEL)
                        case 3:
                            store.move_many([id], Event.REVIVE)
                        case _:
                            store.drop_many([id]) if chance.random() < 0.3 else store.tick()

    threads = [Beside(lambda name=name: produce(name)) for name in range(6)]
    for _ in range(300):
        assert shop.server.command("EVAL", DOUBLE, 0) == []
        stop.wait(0.01)
    stop.set()
    assert [thread.result() for thread in threads] == [None] * 6
    # When all have ended and were forgotten, then nothing is left
    with closing(redis.open(f"{shop.server.url}?shards=4")) as store:
        ids = [f"j{n}" for n in range(5)]
        store.drop_many(ids)
        assert store.get_many(ids) == [None] * len(ids)
        stop.clear()
        stop.wait(0.05)  # longer than any claim is good
        store.tick()
    assert shop.left() == 0
