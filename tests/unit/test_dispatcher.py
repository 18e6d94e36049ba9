"""A dispatcher in this process, turned by hand: what it asks of a store when idle, and what it does about an outage.

The segment, the workers' code and the store are real. The store stands behind a front that counts calls, and can be away.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gotask import backends
from gotask._core.ring import Segment
from gotask.backends import Backend
from gotask.clock import boot_id, monotonic
from gotask.errors import BackendDown
from gotask.model import Job, NewJob, Queue, Rules, Settlement, Worker
from gotask.node import dispatcher as engine
from gotask.node import frame, heldup
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
PATIENCE_S = 25.0


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
    """A Backend in front of a Backend. Calls are counted by verb; `away`, it does not answer; `after` a verb, just once.

    The jobs in `locked` are held by somebody else.
    """

    def __init__(self, store: Backend) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.ears: list[Ear] = []
        self.outages = 0
        self.away = False
        self.after = ""
        self.locked: set[str] = set()

    def fail(self) -> None:
        self.away = True
        self.outages += 1

    def watch(self, topics: list[str]) -> Ear:
        if self.away:
            raise BackendDown
        self.ears.append(Ear(self, topics))
        return self.ears[-1]

    def settle_many(self, settlements: Sequence[Settlement]) -> list[bool | None]:
        free = [one for one in settlements if one.id not in self.locked]
        answers = iter(self.__getattr__("settle_many")(free))
        return [next(answers) if one in free else None for one in settlements]

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
        settler = Settler(line.backend, beside=True)
        self.node = Dispatcher(line, self.segment, self.catalog, registry, settler, "node", 4, LEASE_S, PATIENCE_S)
        self.owner = self.segment.enlist(0)

    def publish(self, *queues: str) -> None:
        """What a generation of workers says that it can run."""
        self.notices.publish([TaskSpec("work", queue, Rules()) for queue in queues])

    def turn(self) -> None:
        """One turn of the loop, and what is done about it if the store is away."""
        try:
            self.node._once()
        except BackendDown as error:
            self.node._outage(error)

    def run_one(self) -> Job:
        """A job comes in, is leased, and its task returns."""
        self.turn()
        self.front.store.enqueue_many([NewJob(type="work", queue="work")])
        self.node._leaser.more()
        self.turn()
        claim = self.segment.claim(self.owner, True, 0.0)
        assert claim is not None
        assert self.segment.report(self.owner, claim.ticket, frame.DONE, b"1", True)
        return self.node.ledger.jobs[claim.ticket]

    def state(self, job: Job) -> State:
        found = self.front.store.get_many([job.id])[0]
        assert found is not None
        return found.status


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


# jobs that others hold


def test_an_ending_that_others_hold_up_costs_the_node_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given two jobs that have ended, of which somebody holds one
    monkeypatch.setattr(heldup, "AGAIN_S", 0.0)
    held = bench.run_one()
    bench.front.locked = {held.id}
    other = bench.run_one()
    # When the node writes their ends down
    bench.turn()
    # Then the other's holds, no slot is taken, and the node says what to do
    assert (bench.state(held), bench.state(other)) == (State.RUNNING, State.SUCCESS)
    assert bench.segment.check()["free"] == bench.segment.slots
    bench.turn()
    assert f"The end of a lease of job {held.id} cannot be written down" in caplog.text
    assert "end that transaction" in caplog.text
    # And more runs meanwhile, the lease of the one that is held is extended, and it is not given back
    more = bench.run_one()
    told: list[str] = []
    monkeypatch.setattr(
        bench.front, "extend_many", lambda beats, _: told.extend(beat.id for beat in beats) or [], raising=False
    )
    bench.node._agenda.at_once("beat")
    bench.node._leaser.unanswered_at = monotonic()
    bench.turn()
    assert told == [held.id]
    assert (bench.state(held), bench.state(more)) == (State.RUNNING, State.SUCCESS)
    # When it is let go of
    bench.front.locked = set()

    def over() -> bool:
        bench.turn()
        return not bench.node._held_up

    # Then its end is written down
    until("the ending that was held up", over)
    assert bench.state(held) is State.SUCCESS


def test_a_node_leases_no_more_while_too_much_is_held_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a node that has as many endings held up as it may
    monkeypatch.setattr(engine, "HELD_UP_MOST", 1)
    held = bench.run_one()
    bench.front.locked = {held.id}
    bench.turn()
    # When more comes in
    before = bench.front.calls["lease"]
    bench.front.store.enqueue_many([NewJob(type="work", queue="work")])
    bench.node._leaser.more()
    bench.turn()
    # Then it is left to others, and this node does not turn in vain
    assert bench.front.calls["lease"] == before
    assert bench.node._rest() > 0.1


@pytest.mark.timeout(30)
@pytest.mark.parametrize("let_go", [True, False], ids=["let go of", "never let go of"])
def test_a_node_that_ends_tries_for_a_while_what_others_hold_up(
    bench: Bench, let_go: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a node with an ending that is held up
    held = bench.run_one()
    bench.front.locked = {held.id}
    bench.turn()
    # When it is told to end
    monkeypatch.setattr(heldup, "AGAIN_S", 0.01)
    bench.node._patience_s = 10.0 if let_go else 0.2
    bench.node.drain()
    begun = time.monotonic()
    if let_go:
        rest = bench.node._rest

        def nap() -> float:
            bench.front.locked = set()
            return rest()

        monkeypatch.setattr(bench.node, "_rest", nap)
    bench.node.run()
    # Then it has written that down, or leaves the job to the lapse of its lease and says so; it is not given back as if undone
    assert bench.state(held) is (State.SUCCESS if let_go else State.RUNNING)
    assert ("the job runs again once its lease has lapsed" in caplog.text) is not let_go
    assert time.monotonic() - begun < 5.0
    assert bench.front.store.all(Worker) == []
