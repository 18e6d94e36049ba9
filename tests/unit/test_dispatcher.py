"""A dispatcher in this process, turned by hand: what it asks of a store when idle, and what it does about an outage.

The segment, the workers' code and the store are real. The store stands behind a front that counts calls, and can be away.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gotask import backends
from gotask._core.ring import Segment
from gotask.backends import Backend
from gotask.clock import boot_id, monotonic
from gotask.errors import BackendDown
from gotask.model import NewJob, Queue, Rules, Worker
from gotask.node import dispatcher as engine
from gotask.node.bell import OWN_WAIT_S, Bell
from gotask.node.catalog import Catalog
from gotask.node.dispatcher import RUNG_S, Dispatcher
from gotask.node.line import Line
from gotask.node.notices import Notices, TaskSpec
from gotask.node.probe import Probe
from gotask.node.registry import LifeLine, Registry
from gotask.node.settler import Settler
from gotask.policy import Outcome
from gotask.states import State
from gotask.ticker import NETWORKED_S, Ticker

LEASE_S = 30.0


class Ear:
    """A Watch in front of a Watch, that hears nothing more once the store was away: its connection is gone."""

    def __init__(self, front: "Front", topics: list[str]) -> None:
        self._front = front
        self._watch = front.store.watch(topics)
        self._outages = front.outages
        self.topics = topics
        self.closed = False

    def wait(self, timeout: float) -> set[str]:
        if self._front.away:
            raise BackendDown
        heard = self._watch.wait(timeout)
        return heard if self._outages == self._front.outages else set()

    def close(self) -> None:
        self.closed = True
        self._watch.close()


class Front:
    """A Backend in front of a Backend. Calls are counted by verb; `away`, it does not answer; `after` a verb, just once."""

    def __init__(self, store: Backend) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.ears: list[Ear] = []
        self.outages = 0
        self.away = False
        self.after = ""

    def fail(self) -> None:
        self.away = True
        self.outages += 1

    def watch(self, topics: list[str]) -> Ear:
        if self.away:
            raise BackendDown
        self.ears.append(Ear(self, topics))
        return self.ears[-1]

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise BackendDown
        real = getattr(self.store, name)
        if not callable(real):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            answer = real(*args, **kwargs)
            if name == self.after:
                self.after = ""
                raise BackendDown
            return answer

        return call


class Bench:
    """One node without its processes."""

    def __init__(self, store: Backend, folder: Path) -> None:
        self.front = Front(store)
        self.segment = Segment(slots=64, workers=1)
        self.notices = Notices()
        line = Line(self.front)  # type: ignore[arg-type]
        life = LifeLine(folder, "node")
        self.catalog = Catalog(line.backend, self.notices, [])
        registry = Registry(line.backend, Worker(name="node", slots=4, boot_id=boot_id(), lock=str(life.path)))
        self.node = Dispatcher(
            line, self.segment, self.catalog, registry, Settler(line.backend, beside=True), "node", 4, LEASE_S
        )

    def publish(self, *queues: str) -> None:
        """What a generation of workers says that it can run."""
        self.notices.publish([TaskSpec("work", queue, Rules()) for queue in queues])

    def turn(self) -> None:
        """One turn of the loop, and what is done about it if the store is away."""
        try:
            self.node._once()
        except BackendDown as error:
            self.node._outage(error)


class Hands:
    """A clock that is moved by hand, for the modules that ask what time it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in ("agenda", "catalog", "leaser", "dispatcher", "probe"):
            monkeypatch.setattr(f"gotask.node.{module}.monotonic", lambda: self.now)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    store = backends.open(f"sqlite:///{tmp_path}/jobs.db")
    monkeypatch.setattr(engine.time, "sleep", lambda _: None)  # the pause after an outage
    made = Bench(store, tmp_path / "nodes")
    made.publish("work")
    yield made
    made.node._bell.close()
    store.close()


def until(what: str, look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        threading.Event().wait(0.005)


# traffic


@pytest.mark.parametrize(
    "record", [Queue(name="work"), Queue(name="work", rate_limit=5.0, max_workers=2)], ids=["free", "limited"]
)
def test_an_idle_node_and_a_server_ask_once_a_second_at_most(
    bench: Bench, record: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a node without work among a thousand, whose clock runs as fast as it sleeps
    hands = Hands(monkeypatch)
    for n in range(1000):
        bench.front.store.put(Worker(name=f"other-{n}", boot_id="another machine", lock="/nowhere"))
    bench.front.store.put(record)
    minutes = 10
    begun = hands.now

    def wait(_: Bell, timeout: float) -> None:
        hands.now += min(timeout, OWN_WAIT_S)
        if hands.now > begun + 60 * minutes:
            bench.node.drain()

    monkeypatch.setattr(Bell, "wait", wait)
    # When it turns for ten minutes
    bench.node.run()
    calls = bench.front.calls
    # Then it has looked for work every other second, and for all else seldom, or once as it began
    most = {"lease": 30.5, "tick": 4.5, "all": 4.5, "put": 6.2}
    assert {verb: count for verb, count in calls.items() if count > minutes * most.get(verb, 0) + 3} == {}
    # And with what a server asks meanwhile, that is within sixty a minute
    pause = Ticker(bench.front, NETWORKED_S).once()  # type: ignore[arg-type]
    server = 60 / (pause * 0.8)  # at the shortest that chance makes of it
    assert sum(calls.values()) / minutes + server <= 60
    assert calls["lease"] >= 29 * minutes  # it was not asleep


def test_a_ring_wakes_all_that_a_calm_store_lets_sleep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an idle node that has just looked
    hands = Hands(monkeypatch)
    bench.turn()
    bench.turn()
    before = Counter(bench.front.calls)
    bench.node._bell.take_work()
    bench.turn()
    assert bench.front.calls == before
    # When a queue's record is changed
    bench.front.store.put(Queue(name="work", weight=7))
    bench.node._bell._note(["queue:work"])
    hands.now += 2.0
    bench.turn()
    hands.now += RUNG_S
    bench.turn()
    # Then the node leases at once, ticks soon, and knows the record within two seconds
    assert (bench.front.calls - before).keys() >= {"lease", "tick", "all"}
    assert [[queue.weight for queue in tier] for tier in bench.catalog.tiers] == [[1, 7]]


# outages


def test_what_a_lost_answer_had_leased_starts_as_soon_as_the_store_answers(bench: Bench) -> None:
    # Given a node with a job in hand
    bench.turn()
    [held] = bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    bench.node._leaser.more()
    bench.turn()
    assert [job.id for job in bench.node.ledger.jobs.values()] == [held.job.id]
    # When the answer to its next lease is lost
    [lost] = bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    bench.node._leaser.more()
    bench.front.after = "lease"
    bench.turn()
    assert [job.id for job in bench.node.ledger.jobs.values()] == [held.job.id]
    running = bench.front.store.get_many([lost.job.id])[0]
    assert running is not None
    assert running.status is State.RUNNING
    # Then the next turn has both in hand: one under its old lease, one under a new one, and no crash is counted
    bench.turn()
    found = {job.id: job for job in bench.node.ledger.jobs.values()}
    assert set(found) == {held.job.id, lost.job.id}
    now = {job.id: job for job in bench.front.store.get_many(list(found)) if job is not None}
    assert {job.id: job.lease for job in now.values()} == {job.id: job.lease for job in found.values()}
    assert (now[held.job.id].lease, now[lost.job.id].crashes) == (1, 0)
    # And it looks for such jobs once
    before = bench.front.calls["find"]
    bench.turn()
    assert bench.front.calls["find"] == before


def test_a_node_that_ends_looks_once_more_for_what_a_lost_answer_had_leased(bench: Bench) -> None:
    # Given a node that lost an answer and has looked for what it had leased
    bench.turn()
    bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    bench.node._leaser.more()
    bench.front.after = "lease"
    bench.turn()
    bench.turn()
    # When the store hears its lease only now, and the node ends
    bench.node.draining = True
    bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    [late] = bench.front.store.lease({"work": 1}, "node", LEASE_S)
    bench.node._farewell()
    # Then nobody has to wait for a lapse
    found = bench.front.store.get_many([late.id])[0]
    assert found is not None
    assert (found.status, found.crashes) == (State.PENDING, 0)


def test_what_has_ended_and_is_not_yet_written_down_is_not_given_back(bench: Bench) -> None:
    # Given a job whose end the store has not heard of
    bench.turn()
    [asked] = bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    bench.node._leaser.more()
    bench.turn()
    [(ticket, job)] = bench.node.ledger.jobs.items()
    bench.node.ledger.decide(ticket, job, Outcome("done", result=b"1"))
    # When the node looks for what a lost lease has left
    bench.node._leaser.unanswered_at = monotonic()
    bench.node._recover()
    # Then the job is still its own
    found = bench.front.store.get_many([asked.job.id])[0]
    assert found is not None
    assert (found.status, found.lease) == (State.RUNNING, job.lease)


def test_after_an_outage_the_bell_is_listened_to_anew(bench: Bench) -> None:
    # Given an idle node whose both ears listen
    bell = bench.node._bell
    bench.turn()
    bell.hand_over()
    until("the thread listens", lambda: len(bench.front.ears) == 1)
    bell.wait(0.0)
    bell.take_work()
    old = list(bench.front.ears)
    assert len(old) == 2
    # When the store is away for a moment, in which it forgets who listens
    bench.front.fail()
    bench.node._agenda.at_once("tick")
    bench.turn()
    bench.front.away = False
    # Then all counts as rung, by the dispatcher's own ear and by the thread's, and the old ones are closed
    assert bell.take_work()
    assert bell.attention
    bell.wait(0.0)
    assert bell.take_work()
    bell.hand_over()
    until("the thread listens again", lambda: len(bench.front.ears) == 4)
    until("the old ears are closed", lambda: all(ear.closed for ear in old))
    assert {tuple(ear.topics) for ear in bench.front.ears[2:]} == {("node:node", "queue:default", "queue:work")}
    # And what comes in is heard
    until("the thread has told of what may have rung meanwhile", bell.take_work)
    bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    until("the thread hears it", bell.take_work)


def test_the_bell_is_listened_to_for_the_queues_that_are_served(bench: Bench) -> None:
    # Given a node that has not heard from its workers yet
    bench.notices = bench.catalog.notices = Notices()
    bench.turn()
    bench.node._bell.wait(0.0)
    assert bench.front.ears[-1].topics == ["node:node", "queue:default"]
    # When they say which queues their tasks name
    bench.publish("mail")
    bench.turn()
    # Then the next wait is for those too, and counts them as rung
    bench.node._bell.take_work()
    bench.node._bell.wait(0.0)
    assert bench.front.ears[-1].topics == ["node:node", "queue:default", "queue:mail"]
    assert bench.node._bell.take_work()


def test_a_node_starts_while_its_store_is_away(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that is away, and that cannot even say what it promises
    bench.front.fail()
    with caplog.at_level(logging.INFO, "gotask.node"):
        for _ in range(3):
            bench.turn()
        assert "Once enqueue has answered" not in caplog.text
        assert Probe(bench.node, bench.segment, bench.catalog, LEASE_S).ready() == "The store has not answered yet."
        # When it is back
        bench.front.away = False
        [asked] = bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
        bench.turn()
    # Then the node says what that promises, and works
    assert "Once enqueue has answered" in caplog.text
    assert [job.id for job in bench.node.ledger.jobs.values()] == [asked.job.id]


def test_a_turn_that_asked_nothing_is_no_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a node that had an answer, and sleeps
    hands = Hands(monkeypatch)
    probe = Probe(bench.node, bench.segment, bench.catalog, LEASE_S)
    monkeypatch.setattr(engine, "SLEEP_S", 0.0)
    bench.node.answered_at = hands.now
    turns = 0

    def once() -> int:
        nonlocal turns
        turns += 1
        hands.now += 1.0
        if turns == 12:
            assert (probe.ready() or "").startswith("The store has not answered for")
            bench.node._line.backend.counts()
        elif turns == 13:
            assert probe.ready() is None
            bench.node.draining = True
        return 1

    # When a dozen turns ask nothing of the store, then it is not ready; when one does and is answered, then it is
    bench.turn()
    assert probe.ready() is None
    monkeypatch.setattr(bench.node, "_once", once)
    bench.node.run()
    assert turns == 13
