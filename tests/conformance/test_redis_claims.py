"""Unique keys of a store in several shards: who holds one while producers die, stand still, and meet each other.

A step is a call of the script that Claims makes. A test stops a store between two steps, and lets another go on. Jobs that want
one key lie in different shards, as within one the shard itself would refuse the second.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from shop import Beside, Halt, Shop, at_step, calls, claim_and_die, enqueue, once_claimed, opened

from gotask.backends.redis import claims
from gotask.errors import BackendDown
from gotask.states import Event
from tests.servers.fixtures import StartRedis


@pytest.fixture
def shop(start_redis: StartRedis) -> Iterator[Shop]:
    with opened(start_redis()) as made:
        yield made


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
