"""PostgreSQL commits, and its answer never arrives: whoever asks again, as the docs advise, does no harm."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import Beat, Held, Job, Queue, Settlement
from gotask.states import Event, State
from tests.chaos.producer import work
from tests.chaos.witness import agreed
from tests.crash.harness import fetch
from tests.servers.chaosproxy import ChaosProxy
from tests.servers.postgres import Postgres

OWNER = "node-1"
COMMITTED = b"Z\0\0\0\5I"  #: the server is ready for the next request, and in no transaction


@dataclass
class Line:
    """`far` reaches the server through the proxy, `store` reaches it by itself."""

    proxy: ChaosProxy
    far: Backend
    store: Backend

    def unheard(self, containing: bytes, call: Callable[[Backend], Any]) -> Any:
        """Call with the answer lost that follows these bytes of a request; then call again, and what that says.

        A connection sends the text of a statement only at first: later it is prepared.
        """
        lost = self.proxy.swallow_reply(containing)
        with pytest.raises(BackendDown) as caught:
            call(self.far)
        assert lost.result(5.0).endswith(COMMITTED), "it had not been done when its answer was lost"
        assert caught.value.retry_after
        return call(self.far)

    def job(self, id: str = "j") -> Job:
        return fetch(self.store, [id])[id]

    def running(self, *ids: str) -> list[Job]:
        self.store.enqueue_many([work(id, 1, 0.0) for id in ids])
        return sorted(self.store.lease({"default": len(ids)}, OWNER, 60.0), key=lambda job: job.id)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("unheard")) as started:
        yield started


@pytest.fixture
def line(server: Postgres, request: pytest.FixtureRequest) -> Iterator[Line]:
    schema = f"?schema=s{abs(hash(request.node.name))}&timeout=2"
    with (
        ChaosProxy(server.address) as proxy,
        closing(backends.open(proxy.before(server.url) + schema)) as far,
        closing(backends.open(server.url + schema)) as store,
    ):
        far.counts()  # it is connected
        yield Line(proxy, far, store)


def test_an_enqueue(line: Line) -> None:
    batch = [work("a", 1, 0.0), work("b", 2, 0.0), work("c", 3, 0.0)]
    answers = line.unheard(b".enqueue_", lambda store: store.enqueue_many(batch))
    assert [(answer.outcome, answer.job.id) for answer in answers] == [("duplicate", id) for id in "abc"]
    assert line.store.counts() == {("default", State.PENDING): 3}
    agreed(line.store)


def test_an_enqueue_whose_job_has_run_meanwhile(line: Line) -> None:
    lost = line.proxy.swallow_reply(b".enqueue_")
    with pytest.raises(BackendDown):
        line.far.enqueue_many([work("j", 1, 0.0)])
    lost.result(5.0)
    (job,) = line.store.lease({"default": 1}, OWNER, 60.0)
    assert line.store.settle_many([Settlement("j", job.lease, Event.ACK)]) == [True]
    assert line.far.enqueue_many([work("j", 1, 0.0)])[0].outcome == "duplicate"
    assert line.far.enqueue_many([work("j", 2, 0.0)])[0].outcome == "conflict"
    agreed(line.store)


def test_an_ack(line: Line) -> None:
    jobs = line.running("a", "b")
    endings = [Settlement(job.id, job.lease, Event.ACK, result=b"7") for job in jobs]
    assert line.unheard(b".ack_", lambda store: store.settle_many(endings)) == [False, False]
    assert {line.job(id).status for id in "ab"} == {State.SUCCESS}
    assert line.store.counts() == {("default", State.SUCCESS): 2}
    agreed(line.store)


@pytest.mark.parametrize(
    ("event", "state", "retries"),
    [
        (Event.RETRY, State.RETRYING, 1),
        (Event.SNOOZE, State.SCHEDULED, 0),
        (Event.RELEASE, State.PENDING, 0),
        (Event.BURY, State.FAILED, 0),
        (Event.CANCEL, State.CANCELLED, 0),
    ],
)
def test_another_ending(line: Line, event: Event, state: State, retries: int) -> None:
    (job,) = line.running("j")
    ending = Settlement("j", job.lease, event, due_in=60.0, error="why")
    assert line.unheard(b".write_", lambda store: store.settle_many([ending])) == [False]
    found = line.job()
    assert (found.status, found.retry_count) == (state, retries)
    agreed(line.store)


def test_endings_of_all_kinds_at_once(line: Line) -> None:
    jobs = line.running("a", "b", "c")
    events = (Event.ACK, Event.RETRY, Event.BURY)
    endings = [Settlement(job.id, job.lease, event, due_in=60.0) for job, event in zip(jobs, events, strict=True)]
    assert line.unheard(b".write_", lambda store: store.settle_many(endings)) == [False] * 3
    assert [line.job(id).status for id in "abc"] == [State.SUCCESS, State.RETRYING, State.FAILED]
    agreed(line.store)


def test_a_lease(line: Line) -> None:
    line.store.enqueue_many([work("a", 1, 0.0), work("b", 2, 0.0)])
    (second,) = line.unheard(b".lease_", lambda store: store.lease({"default": 1}, OWNER, 60.0))
    # What was leased unheard can be found by its owner, who gives it back, and then it is leased again
    first = line.job("a")
    assert (second.id, first.status, first.worker_id) == ("b", State.RUNNING, OWNER)
    assert line.far.settle_many([Settlement("a", first.lease, Event.RELEASE)]) == [True]
    (again,) = line.far.lease({"default": 1}, OWNER, 60.0)
    assert (again.id, again.crashes, again.retry_count) == ("a", 0, 0)
    assert again.lease > first.lease
    endings = [Settlement("a", first.lease, Event.ACK), *(Settlement(j.id, j.lease, Event.ACK) for j in (again, second))]
    assert line.far.settle_many(endings) == [False, True, True]
    agreed(line.store)


def test_a_heartbeat(line: Line) -> None:
    (job,) = line.running("j")
    assert line.unheard(b".extend_", lambda store: store.extend_many([Beat("j", job.lease, 5.0)], 60.0)) == [Held.HELD]
    assert line.job().progress == 5.0


def test_a_tick(line: Line) -> None:
    line.store.enqueue_many([work("j", 1, 0.0)])
    line.store.lease({"default": 1}, OWNER, 0.0)
    line.unheard(b".write_", lambda store: store.tick())
    found = line.job()
    assert (found.status, found.crashes, found.retry_count) == (State.PENDING, 1, 0)
    agreed(line.store)


def test_a_cancel_and_a_revival(line: Line) -> None:
    line.store.enqueue_many([work("j", 1, 0.0)])
    assert line.unheard(b".write_", lambda store: store.move_many(["j"], Event.CANCEL)) == [False]
    assert line.job().status is State.CANCELLED
    assert line.unheard(b".write_", lambda store: store.move_many(["j"], Event.REVIVE)) == [False]
    assert line.job().status is State.PENDING
    agreed(line.store)


def test_a_drop_and_a_record(line: Line) -> None:
    line.store.enqueue_many([work("j", 1, 0.0)])
    assert line.unheard(b"drop_waiting_1", lambda store: store.drop_many(["j"])) == [False]
    assert line.store.counts() == {}
    assert line.unheard(b"INSERT INTO", lambda store: store.put(Queue(name="q", weight=3), 0)) is False
    found = line.store.get(Queue, "q")
    assert found is not None
    assert (found.version, found.weight) == (1, 3)
    agreed(line.store)


def test_whoever_watches_anew_after_an_outage_is_told_of_what_he_cannot_hear(line: Line) -> None:
    # Given a store that listens on a line which falls silent for ever, though new ones are possible
    watch = line.far.watch(["job:j"])
    while watch.wait(0.5):
        pass
    line.proxy.black_hole(deliver=False)
    with pytest.raises(BackendDown):
        line.far.counts()
    line.proxy.heal()
    # When it watches anew, then it finds out within seconds that it is deaf, and not after a long silence only
    watch.close()
    again = line.far.watch(["job:j"])
    assert again.wait(5.0) == {"job:j"}
