"""The doorbell: nothing rung since the watch began is missed; it may ring for nothing, and costs no polling."""

import threading
import time
from collections.abc import Callable

import pytest
from lab import Lab

from gotask.backends import Watch
from gotask.model import Queue
from gotask.states import Event

QUEUE, NODE = "queue:default", "node:node-1"
SOON = 10.0  #: seconds after which a bell that did not ring is a failure


def quiet(watch: Watch) -> None:
    """Hear what is left of the past."""
    while watch.wait(0.0):
        pass


RINGS: dict[str, tuple[str, Callable[[Lab], object]]] = {
    "enqueue": (QUEUE, lambda lab: lab.enqueue("new")),
    "enqueue for later": (QUEUE, lambda lab: lab.enqueue("new", delay=60.0)),
    "release": (QUEUE, lambda lab: lab.settle(lab.job("run"), Event.RELEASE)),
    "retry": (QUEUE, lambda lab: lab.settle(lab.job("run"), Event.RETRY, due_in=5.0)),
    "revive": (QUEUE, lambda lab: lab.store.move_many(["ended"], Event.REVIVE)),
    "promote": (QUEUE, lambda lab: (lab.advance(20), lab.store.tick())),
    "resume": (QUEUE, lambda lab: lab.store.put(Queue(name="default"))),
    "ack": ("job:run", lambda lab: lab.settle(lab.job("run"), Event.ACK)),
    "bury": ("job:run", lambda lab: lab.settle(lab.job("run"), Event.BURY)),
    "cancel": ("job:later", lambda lab: lab.store.move_many(["later"], Event.CANCEL)),
    "delete": ("job:later", lambda lab: lab.store.drop_many(["later"])),
    "ask to stop": (NODE, lambda lab: lab.store.move_many(["run"], Event.CANCEL)),
}


@pytest.mark.parametrize("what", list(RINGS))
def test_who_listens_is_woken(lab: Lab, what: str) -> None:
    # Given one listener that listens already and waits, and one that looks later
    topic, act = RINGS[what]
    lab.running("run")
    lab.enqueue("later", delay=10.0)
    lab.enqueue("ended")
    assert lab.store.move_many(["ended"], Event.CANCEL) == [True]
    other = lab.another()
    waiting, looking = other.watch([topic]), other.watch([topic, "job:nobody"])
    quiet(waiting)
    quiet(looking)
    heard: list[set[str]] = []
    thread = threading.Thread(target=lambda: heard.append(waiting.wait(SOON)))
    thread.start()
    # When something happens on another connection
    act(lab)
    # Then both hear of it
    thread.join(SOON + 5)
    assert heard == [{topic}]
    assert topic in looking.wait(SOON)
    waiting.close()
    looking.close()


def test_a_place_that_becomes_free_rings_for_those_that_were_refused(lab: Lab) -> None:
    lab.store.put(Queue(name="default", max_workers=1))
    job = lab.running("j")
    watch = lab.another().watch([QUEUE])
    quiet(watch)
    assert lab.settle(job, Event.ACK)
    assert watch.wait(SOON) == {QUEUE}


def test_nothing_rung_between_two_waits_is_missed(lab: Lab) -> None:
    watch = lab.another().watch([QUEUE, NODE, "job:a"])
    job = lab.running("a")
    lab.settle(job, Event.ACK)
    heard = watch.wait(SOON)
    while not {QUEUE, "job:a"} <= heard:
        rung = watch.wait(SOON)
        assert rung, f"heard no more than {heard}"
        heard |= rung
    lab.enqueue("b")
    assert QUEUE in watch.wait(SOON)


def test_silence_lasts_as_long_as_it_was_asked_for(lab: Lab) -> None:
    watch = lab.store.watch(["job:a"])
    quiet(watch)
    assert watch.wait(0.05) == set()
    assert lab.store.watch([]).wait(0.0) == set()


def test_many_topics_in_one_watch(lab: Lab) -> None:
    # Given a listener for hundreds of jobs
    names = [f"j{n}" for n in range(300)]
    lab.enqueue(*names)
    watch = lab.another().watch([f"job:{name}" for name in names])
    quiet(watch)
    heard: set[str] = set()
    thread = threading.Thread(target=lambda: heard.update(watch.wait(SOON)))
    thread.start()
    lab.store.move_many(["j250"], Event.CANCEL)
    thread.join(SOON + 5)
    assert "job:j250" in heard


def test_a_store_that_is_closed_ends_the_waits_of_other_threads(lab: Lab) -> None:
    # Given threads that wait, as the one that serves long polls does when its server ends
    other = lab.another()
    watches = [other.watch([QUEUE]), other.watch(["job:j"])]
    for watch in watches:
        quiet(watch)
    ended: list[object] = []

    def wait(watch: Watch) -> None:
        try:
            ended.append(watch.wait(1.0))
        except Exception as error:
            ended.append(error)

    threads = [threading.Thread(target=wait, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    # When the store is closed under them, then they end quietly; one that looks from time to time may have rung
    other.close()
    for thread in threads:
        thread.join(10.0)
    assert [heard for heard in ended if heard not in (set(), {QUEUE}, {"job:j"})] == []
    assert len(ended) == 2
    for watch in watches:
        watch.close()


def test_two_sides_play_ping_pong_without_a_lost_wake(lab: Lab) -> None:
    # Given two threads, each of which ends a job when the other's has ended
    rounds = 100
    lab.enqueue(*(f"ping{n}" for n in range(rounds)), *(f"pong{n}" for n in range(rounds)), delay=60.0)
    late: list[str] = []

    def play(mine: str, theirs: str, first: bool) -> None:
        store = lab.another()
        for n in range(rounds):
            watch = store.watch([f"job:{theirs}{n}"])
            if first:
                store.move_many([f"{mine}{n}"], Event.CANCEL)
            while not (job := store.get_many([f"{theirs}{n}"])[0]) or job.completed_at is None:
                if not watch.wait(SOON):
                    late.append(f"{theirs}{n}")
                    return
            if not first:
                store.move_many([f"{mine}{n}"], Event.CANCEL)

    threads = [threading.Thread(target=play, args=args) for args in (("ping", "pong", True), ("pong", "ping", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert late == []
