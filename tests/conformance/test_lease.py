"""Who is leased what: order, ageing, pauses, limits."""

import threading

import pytest
from lab import LEASE_S, Lab, counted_at_once, new, ordered

from gotask.model import Job, Queue, Settlement
from gotask.states import Event, State


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


@ordered
def test_first_come_first_served(lab: Lab) -> None:
    names = [f"j{n:03}" for n in range(60)]
    lab.enqueue(*names)
    assert [id for _ in range(20) for id in ids(lab.lease(3))] == names


@ordered
def test_a_higher_priority_goes_first_and_ties_by_age(lab: Lab) -> None:
    for id, priority in [("low", 0), ("n1", 1), ("top", 9), ("n2", 1), ("h1", 2), ("h2", 2)]:
        lab.enqueue(id, priority=priority)
    assert ids(lab.lease(4)) == ["top", "h1", "h2", "n1"]
    assert ids(lab.lease(4)) == ["n2", "low"]


def test_queues_do_not_meet(lab: Lab) -> None:
    lab.enqueue("a", queue="one")
    lab.enqueue("b", queue="two")
    lab.enqueue("c", queue="three")
    got = lab.store.lease({"one": 5, "two": 0, "none": 5, "three": 1}, "n", LEASE_S)
    assert sorted(ids(got)) == ["a", "c"]
    assert len({job.lease for job in got}) == 1


@ordered
@pytest.mark.parametrize("batch", [1, 4, 16, 48])
def test_one_in_sixteen_is_the_oldest(lab: Lab, batch: int) -> None:
    # Given old jobs of low priority under a pile of urgent ones
    lab.enqueue(*(f"old{n}" for n in range(10)), priority=0)
    lab.enqueue(*(f"new{n}" for n in range(300)), priority=9)
    # When some of them are leased, in batches of any size
    got = [id for _ in range(96 // batch) for id in ids(lab.lease(batch))]
    # Then one in sixteen was an old one, the oldest first, and the others went by priority
    assert len(got) == 96
    assert [id for id in got if id.startswith("old")] == [f"old{n}" for n in range(6)]
    assert [id for id in got if id.startswith("new")] == [f"new{n}" for n in range(90)]


@ordered
def test_the_turn_of_the_oldest_outlives_a_connection(lab: Lab) -> None:
    lab.enqueue("old", priority=0)
    lab.enqueue(*(f"new{n}" for n in range(40)), priority=9)
    got = []
    for _ in range(16):
        store = lab.another()
        got += ids(store.lease({"default": 1}, "n", LEASE_S))
        store.close()
    assert got[-1] == "old"


@ordered
def test_a_released_job_has_its_old_place_and_a_promoted_one_a_new(lab: Lab) -> None:
    # Given three jobs, of which the first is released and the second retried
    lab.enqueue("a", "b", "c")
    a, b = lab.lease(2)
    assert lab.settle(b, Event.RETRY, due_in=0.0)
    assert lab.settle(a, Event.RELEASE)
    lab.tick_all()
    # Then the released one is first again, the retried one last
    assert ids(lab.lease(9)) == ["a", "c", "b"]


@ordered
def test_many_jobs_of_one_instant_are_promoted_in_order_and_none_is_lost(lab: Lab) -> None:
    names = [f"j{n:03}" for n in range(300)]
    lab.enqueue(*names, scheduled_at=lab.at(5))
    lab.advance(5)
    lab.tick_all()
    assert ids(lab.lease(500)) == names


def test_a_paused_queue_gives_nothing_until_it_is_resumed(lab: Lab) -> None:
    lab.enqueue("j")
    assert lab.store.put(Queue(name="default", paused=True))
    assert lab.lease() == []
    assert lab.job("j").status is State.PENDING
    assert lab.store.put(Queue(name="default", paused=False))
    assert ids(lab.lease()) == ["j"]


def test_max_workers_holds_over_all_nodes_and_ends(lab: Lab) -> None:
    # Given a queue of at most three running jobs
    assert lab.store.put(Queue(name="default", max_workers=3))
    lab.enqueue(*(f"j{n}" for n in range(10)))
    other = lab.another()
    # When two nodes ask for all, then they get three together
    first = lab.lease(2)
    second = other.lease({"default": 9}, "node-2", LEASE_S)
    assert (len(first), len(second)) == (2, 1)
    assert other.lease({"default": 9}, "node-2", LEASE_S) == []
    # And each way to end one makes room for one
    for event in (Event.ACK, Event.RETRY, Event.RELEASE, Event.BURY):
        assert lab.settle(second[0], event, due_in=60.0)
        second = other.lease({"default": 9}, "node-2", LEASE_S)
        assert len(second) == 1
    lab.advance(LEASE_S)
    lab.tick_all()
    assert len(lab.lease(9)) == 3


@counted_at_once
def test_max_workers_holds_when_leasers_race(lab: Lab) -> None:
    assert lab.store.put(Queue(name="default", max_workers=5))
    lab.store.enqueue_many([new() for _ in range(200)])
    start, over = threading.Barrier(4), []

    def run(store_number: int) -> None:
        store = stores[store_number]
        start.wait(10)
        for _ in range(25):
            jobs = store.lease({"default": 3}, f"n{store_number}", LEASE_S)
            running = store.counts().get(("default", State.RUNNING), 0)
            if running > 5:
                over.append(running)
            for job in jobs:
                assert store.settle_many([Settlement(job.id, job.lease, Event.ACK)]) == [True]

    stores = [lab.another() for _ in range(4)]
    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert over == []
    assert lab.store.counts().get(("default", State.SUCCESS), 0) > 0


def test_a_rate_limit_is_a_bucket_of_one_second(lab: Lab) -> None:
    # Given ten starts a second
    assert lab.store.put(Queue(name="default", rate_limit=10.0))
    lab.store.enqueue_many([new() for _ in range(100)])
    other = lab.another()
    # When two nodes ask for all, then they get a second's worth together
    assert len(lab.lease(7)) == 7
    assert len(other.lease({"default": 50}, "n2", LEASE_S)) == 3
    assert lab.lease(50) == []
    # And more as time passes, but never more than a second's worth
    lab.advance(0.5)
    assert len(lab.lease(50)) == 5
    lab.advance(60)
    assert len(lab.lease(50)) == 10


def test_a_rate_below_one_a_second_still_starts_one(lab: Lab) -> None:
    assert lab.store.put(Queue(name="default", rate_limit=0.1))
    lab.store.enqueue_many([new() for _ in range(5)])
    assert [len(lab.lease(5)), len(lab.lease(5))] == [1, 0]
    lab.advance(9)
    assert lab.lease(5) == []
    lab.advance(1)
    assert len(lab.lease(5)) == 1


def test_a_clock_that_steps_back_neither_breaks_nor_floods_a_limit(lab: Lab) -> None:
    assert lab.store.put(Queue(name="default", rate_limit=2.0))
    lab.store.enqueue_many([new() for _ in range(10)])
    assert len(lab.lease(9)) == 2
    lab.advance(-3600)
    assert lab.lease(9) == []
    lab.advance(1)
    assert len(lab.lease(9)) == 2
