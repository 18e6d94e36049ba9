"""Death of a dispatcher at each of its steps: the whole of it in one process, so that the instant can be chosen.

The store is real, the segment is real, the worker's code is real. A dispatcher dies at its k-th call to the store, before or
after the store has done it; another takes over the same segment; and so on for every k until none dies any more.
"""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest

from gotask import backends
from gotask._core.ring import Segment
from gotask.backends import Backend
from gotask.model import NewJob, Rules, Settlement, Worker
from gotask.node import heldup
from gotask.node.catalog import Catalog
from gotask.node.dispatcher import Dispatcher
from gotask.node.line import Line
from gotask.node.notices import Notices, TaskSpec
from gotask.node.registry import Registry
from gotask.node.run import Runner
from gotask.node.serial import SerialWorker
from gotask.node.settler import Settler
from gotask.states import State
from gotask.task import Task, Tasks

JOBS = 12
LEASE_S = 0.5
PATIENCE_S = 25.0


class Death(BaseException):
    """The dispatcher is no more. A BaseException, as no code of its may catch it."""


class Mortal:
    """A backend whose user dies at call number `last`, before the store acts or after."""

    def __init__(self, backend: Backend, last: float, after: bool) -> None:
        self._backend = backend
        self._left = last
        self._after = after
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._backend, name)
        if name in ("close", "watch", "promise"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                self._die()
            answer = real(*args, **kwargs)
            if self._left == 0:
                self._die()
            return answer

        return call

    def _die(self) -> None:
        self.dead = True
        raise Death


class Locked:
    """A store in which somebody holds a job, until its end was asked for so many times."""

    def __init__(self, backend: Backend, job: str, times: int) -> None:
        self._backend = backend
        self._job = job
        self._times = times

    def settle_many(self, settlements: Sequence[Settlement]) -> list[bool | None]:
        held = self._times > 0 and any(one.id == self._job for one in settlements)
        self._times -= held
        free = [one for one in settlements if not (held and one.id == self._job)]
        answers = iter(self._backend.settle_many(free))
        return [next(answers) if one in free else None for one in settlements]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class Bench:
    """One node without its processes."""

    def __init__(self, backend: Any) -> None:
        self.ran: list[int] = []
        self.backend = backend
        self.segment = Segment(slots=64, workers=1)
        self.notices = Notices()
        tasks = Tasks()

        def work(n: int) -> int:
            self.ran.append(n)
            return n

        tasks.add(Task(work))
        self.notices.publish([TaskSpec("work", "default", Rules())])
        owner = self.segment.enlist(0)
        self.claim: Callable[[], Any] = lambda: self.segment.claim(owner, True, 0.0)
        self.worker = SerialWorker(Runner(self.segment, owner, tasks, self.notices), 0, 0)

    def dispatcher(self, last: float, after: bool) -> tuple[Dispatcher, Mortal]:
        mortal: Any = Mortal(self.backend, last, after)
        line = Line(mortal)
        catalog = Catalog(line.backend, self.notices, [])
        registry = Registry(line.backend, Worker(name="node"))
        return Dispatcher(
            line, self.segment, catalog, registry, Settler(line.backend, beside=True), "node", 4, LEASE_S, PATIENCE_S
        ), mortal

    def turn(self, dispatcher: Dispatcher) -> None:
        dispatcher._once()
        while (claimed := self.claim()) is not None:
            self.worker._perform(*claimed)

    def live(self, dispatcher: Dispatcher, done: Callable[[], bool]) -> bool:
        """Turn until done; False if it died before."""
        try:
            for _ in range(400):
                self.turn(dispatcher)
                if done() and dispatcher.ledger.empty and not dispatcher._held_up:
                    return True
                self.segment.wait_reports(self.segment.reports_seen(), 0.01)
            raise AssertionError("the jobs have not ended")
        except Death:
            return False
        finally:
            dispatcher._bell.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    backend = backends.open(f"sqlite:///{tmp_path}/jobs.db")
    yield backend
    backend.close()


@pytest.mark.parametrize("held", [0, 3], ids=["free", "one is held"])
@pytest.mark.parametrize("after", [False, True], ids=["before the store acts", "after the store acted"])
def test_a_dispatcher_may_die_at_any_call_to_the_store(
    after: bool, held: int, store: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heldup, "AGAIN_S", 0.0)
    last, died = 0, 0
    while True:
        last += 1
        # Given jobs, and a dispatcher that dies at its next call of the store
        ids = [one.job.id for one in store.enqueue_many([NewJob(type="work", payload=payload(n)) for n in range(JOBS)])]
        bench = Bench(Locked(store, ids[0], held))

        def done(ids: list[str] = ids) -> bool:
            return all(job is not None and job.status is State.SUCCESS for job in store.get_many(ids))

        first, mortal = bench.dispatcher(last, after)
        survived = bench.live(first, done)
        if not survived:
            died += 1
            assert mortal.dead
            # When another one takes over its segment
            second, _ = bench.dispatcher(inf, after)
            assert bench.live(second, done)
        # Then each job has ended well, has run once, none is held to have crashed, and nothing is left in the segment
        assert done()
        assert {job.crashes for job in store.get_many(ids) if job is not None} == {0}
        assert sorted(bench.ran) == list(range(JOBS))
        assert bench.segment.check()["free"] == bench.segment.slots
        if survived:
            break
    assert died >= 5  # refresh, adopt, settle, lease, beat, tick at the least


def payload(n: int) -> Any:
    from msgspec import Raw

    return Raw(b'{"n":%d}' % n)
