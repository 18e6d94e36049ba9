"""Unique keys of a store in several shards: who holds one while producers die, stand still, and meet each other.

A step is a call of the script that Claims makes. A test stops a store between two steps, and lets another go on. Jobs that want
one key lie in different shards, as within one the shard itself would refuse the second.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, Final

import pytest
from lab import LEASE_S, Clock, new

from gotask.backends import redis
from gotask.backends.redis import claims
from gotask.errors import BackendDown
from gotask.model import Enqueued, Filter, Settlement
from gotask.states import LIVE, Event
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

WAIT_S: Final = 20.0  #: seconds after which a thread of a test is stuck
#: keys of all shards that have a part in deciding unique keys
LEFT: Final = "return #redis.call('KEYS', '*:claims') + #redis.call('KEYS', '*:claimed') + #redis.call('KEYS', '*:freed')"
#: unique keys that two jobs hold, at one instant
DOUBLE: Final = """
local seen, double = {}, {}
for _, set in ipairs(redis.call('KEYS', '*:unique')) do
  for _, key in ipairs(redis.call('HKEYS', set)) do
    if seen[key] then double[#double + 1] = key end
    seen[key] = true
  end
end
return double
"""


class Died(Exception):
    """The producer died here."""


class Shop:
    """Stores of four shards on one server, each as another process has it."""

    def __init__(self, server: Redis) -> None:
        self.server, self.clock = server, Clock()
        self.stores: list[redis.Redis] = []

    def store(self, clock: Callable[[], float] | None = None) -> redis.Redis:
        url = f"{self.server.url}?shards=4&timeout=1"
        self.stores.append(redis.open(url, clock or self.clock))
        return self.stores[-1]

    @property
    def under_way_s(self) -> float:
        return self.stores[0]._claims._under_way_s

    def pass_claims(self) -> None:
        """Time goes by, until no claim so far is good any more."""
        self.clock.now += self.under_way_s + claims.MARGIN_S + 0.001

    def left(self) -> int:
        found: int = self.server.command("EVAL", LEFT, 0)
        return found

    def live(self, key: str = "k") -> list[str]:
        return [job.id for job in self.stores[0].find(Filter(unique_key=key)).jobs if job.status in LIVE]


@pytest.fixture
def shop(start_redis: StartRedis) -> Iterator[Shop]:
    made = Shop(start_redis())
    of = made.store()._shards.of
    assert all(of(one) != of(other) for one, other in (("a", "b"), ("slow", "quick"), ("paused", "other")))
    yield made
    for store in made.stores:
        store.close()


def at_step(
    store: redis.Redis,
    verb: str,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
    nth: int = 1,
) -> None:
    """Do something before or after the nth call of `verb` that Claims makes in that store from now on."""
    run, calls = store._claims._run, 0

    def stepping(root: str, said: str, *arguments: Any) -> Any:
        nonlocal calls
        calls += said == verb
        here = said == verb and calls == nth
        if here:
            before()
        answer = run(root, said, *arguments)
        if here:
            after()
        return answer

    store._claims._run = stepping


def once_claimed(store: redis.Redis, then: Callable[[], object]) -> None:
    """Do something after the first claim that is made in that store from now on."""
    run, made = store._claims._run, []

    def claiming(root: str, said: str, *arguments: Any) -> Any:
        answer = run(root, said, *arguments)
        if said == "claim" and len(answer) == 1 and not made:
            made.append(said)
            then()
        return answer

    store._claims._run = claiming


def calls(store: redis.Redis, verb: str) -> list[str]:
    """The calls of a verb that Claims makes in that store from now on."""
    run, made = store._claims._run, []

    def counting(root: str, said: str, *arguments: Any) -> Any:
        made.extend([said] if said == verb else ())
        return run(root, said, *arguments)

    store._claims._run = counting
    return made


def enqueue(store: redis.Redis, id: str, key: str = "k") -> tuple[str, str]:
    """The outcome, and the id of the job that stands."""
    answer: Enqueued
    (answer,) = store.enqueue_many([new(id=id, unique_key=key)])
    return answer.outcome, answer.job.id


def die() -> None:
    raise Died


def claim_and_die(store: redis.Redis, id: str, key: str = "k") -> None:
    once_claimed(store, die)
    with pytest.raises(Died):
        enqueue(store, id, key)


class Beside(threading.Thread):
    """Something that is done beside the test, and what came of it."""

    def __init__(self, do: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._do = do
        self._found: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._found = self._do()
        except Exception as error:
            self._found = error

    def result(self) -> Any:
        self.join(WAIT_S)
        assert not self.is_alive(), "it is stuck"
        return self._found


class Halt:
    """A place at which a thread stands still until it may go on."""

    def __init__(self) -> None:
        self._reached, self._go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._go.wait(WAIT_S)

    def reached(self) -> None:
        assert self._reached.wait(WAIT_S)

    def go(self) -> None:
        self._go.set()


# producers that die or stand still


def test_a_claim_that_was_just_taken_over_is_not_taken_over_again(shop: Shop) -> None:
    # Given a producer that died after its claim, long ago, and another that has seen so and is about to take the claim over
    claim_and_die(shop.store(), "dead")
    shop.pass_claims()
    slow, quick = shop.store(), shop.store()
    about, claimed = Halt(), Halt()
    at_step(slow, "get", after=about, nth=2)  # the first one looks for a job of its own id
    late = Beside(lambda: enqueue(slow, "slow"))
    about.reached()
    # When a third one is quicker, and has not yet made its job
    once_claimed(quick, claimed)
    first = Beside(lambda: enqueue(quick, "quick"))
    claimed.reached()
    again = Halt()
    at_step(slow, "get", after=again)
    about.go()
    again.reached()
    claimed.go()
    # Then it has the key, and the slow one is answered with its job
    assert first.result() == ("created", "quick")
    again.go()
    assert late.result() == ("duplicate", "quick")
    assert shop.live() == ["quick"]


def test_a_producer_that_stood_still_after_its_claim_makes_no_second_job(shop: Shop) -> None:
    # Given a producer that stands still between its claim and its job
    paused, other = shop.store(), shop.store()
    halt = Halt()
    once_claimed(paused, halt)
    late = Beside(lambda: enqueue(paused, "paused"))
    halt.reached()
    # When another takes the claim over
    shop.pass_claims()
    assert enqueue(other, "other") == ("created", "other")
    # Then the first one, when it goes on, is answered with that one's job
    halt.go()
    assert late.result() == ("duplicate", "other")
    assert shop.live() == ["other"]


def test_a_producer_that_stood_still_and_met_nobody_makes_its_job(shop: Shop) -> None:
    store = shop.store()
    once_claimed(store, shop.pass_claims)
    assert enqueue(store, "late") == ("created", "late")
    assert enqueue(shop.store(), "other") == ("duplicate", "late")


def test_clocks_that_are_too_far_apart_are_an_error_and_not_a_loop(shop: Shop) -> None:
    # Given that each claim is over by the time that its job comes
    store = shop.store()
    run = store._claims._run

    def slow(root: str, verb: str, *arguments: Any) -> Any:
        answer = run(root, verb, *arguments)
        if verb == "claim":
            shop.pass_claims()
        return answer

    store._claims._run = slow
    # Then it is said
    with pytest.raises(BackendDown, match="3 times, each time too late for its job; compare the clocks of the masters"):
        enqueue(store, "never")


def test_a_claim_is_good_for_a_clock_that_is_a_little_behind(shop: Shop) -> None:
    # Given two producers for which time is half a second apart, and one of them at the end of the time of its claim
    behind, ahead = shop.store(), shop.store(lambda: shop.clock.now + claims.MARGIN_S / 2)
    halt, looked = Halt(), Halt()
    once_claimed(behind, halt)
    first = Beside(lambda: enqueue(behind, "a"))
    halt.reached()
    shop.clock.now += shop.under_way_s - 0.01
    # When the other looks, then it waits
    at_step(ahead, "over", before=looked)
    at_step(ahead, "claim", before=looked, nth=2)
    other = Beside(lambda: enqueue(ahead, "b"))
    looked.reached()
    halt.go()
    assert first.result() == ("created", "a")
    looked.go()
    assert other.result() == ("duplicate", "a")


def test_a_job_whose_twin_is_under_way_has_its_key(shop: Shop) -> None:
    # Given two calls that enqueue one job, of which one stands still after its claim, and the other's job has ended
    paused, store, other = shop.store(), shop.store(), shop.store()
    halt, waits = Halt(), Halt()
    once_claimed(paused, halt)
    late = Beside(lambda: enqueue(paused, "a"))
    halt.reached()
    assert enqueue(store, "a") == ("created", "a")
    store.move_many(["a"], Event.CANCEL)
    store.tick()
    # When somebody else wants its key, then it is not known to be free, as the job may be dropped and made once more
    at_step(other, "over", before=waits)
    producer = Beside(lambda: enqueue(other, "b"))
    waits.reached()
    assert store.drop_many(["a"]) == [True]
    halt.go()
    assert late.result() == ("created", "a")
    waits.go()
    assert producer.result() == ("duplicate", "a")


def test_a_producer_that_tries_again_does_not_wait_for_itself(shop: Shop) -> None:
    # Given a producer whose job did not arrive
    store = shop.store()
    claim_and_die(shop.store(), "a")
    # When it tries again, then it has its key at once, though both claims are still good
    claimed = calls(store, "claim")
    assert enqueue(store, "a") == ("created", "a")
    assert len(claimed) == 2
    assert enqueue(shop.store(), "b") == ("duplicate", "a")


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
