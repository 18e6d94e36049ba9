"""Calls that fail before they did anything, or after they did it all: any may be sent again."""

from collections.abc import Callable
from typing import Any

import pytest
from lab import LEASE_S, Lab, new

from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import Beat, Held, Queue, Settlement
from gotask.states import Event, State


class Shaky:
    """A Backend around a Backend: one call of it fails, `before` the store heard it or `after` the store did it."""

    def __init__(self, store: Backend, when: str) -> None:
        self._store = store
        self._when = when

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._store, name)

        def shaken(*args: Any) -> Any:
            when, self._when = self._when, ""
            if when == "before":
                raise BackendDown
            answer = call(*args)
            if when == "after":
                raise BackendDown
            return answer

        return shaken


@pytest.fixture(params=["before", "after"])
def shaky(lab: Lab, request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Calls a method that fails with an outcome that its caller cannot know, then calls it again."""

    def twice(method: str, *args: Any) -> Any:
        store = Shaky(lab.another(), request.param)
        with pytest.raises(BackendDown):
            getattr(store, method)(*args)
        return getattr(store, method)(*args)

    return twice  # type: ignore[return-value]


def test_an_enqueue_sent_again_is_one_job(lab: Lab, shaky: Callable[..., Any]) -> None:
    answers = shaky("enqueue_many", [new(id="a"), new(id="b", unique_key="k")])
    assert {answer.outcome for answer in answers} <= {"created", "duplicate"}
    assert lab.store.counts() == {("default", State.PENDING): 2}


def test_a_settlement_sent_again_ends_the_job_once(lab: Lab, shaky: Callable[..., Any]) -> None:
    job = lab.running("j")
    shaky("settle_many", [Settlement("j", job.lease, Event.RETRY, due_in=1.0)])
    assert (lab.job("j").status, lab.job("j").retry_count) == (State.RETRYING, 1)


def test_a_lease_whose_answer_was_lost_lapses(lab: Lab, shaky: Callable[..., Any]) -> None:
    lab.enqueue("a", "b", "c")
    got = shaky("lease", {"default": 1}, "n", LEASE_S)
    assert len(got) == 1
    lab.advance(LEASE_S)
    lab.tick_all()
    assert {job.id for job in lab.lease(9)} == {"a", "b", "c"}


def test_a_beat_sent_again_holds(lab: Lab, shaky: Callable[..., Any]) -> None:
    job = lab.running("j")
    assert shaky("extend_many", [Beat("j", job.lease, 5.0)], LEASE_S) == [Held.HELD]


def test_a_tick_done_again_does_nothing_twice(lab: Lab, shaky: Callable[..., Any]) -> None:
    lab.running("j")
    lab.advance(LEASE_S)
    shaky("tick")
    assert lab.job("j").crashes == 1


def test_a_cancel_sent_again_stays_cancelled(lab: Lab, shaky: Callable[..., Any]) -> None:
    lab.enqueue("j")
    shaky("move_many", ["j"], Event.CANCEL)
    assert lab.job("j").status is State.CANCELLED


def test_a_put_with_a_version_sent_again_is_put_once(lab: Lab, shaky: Callable[..., Any]) -> None:
    lab.store.put(Queue(name="q"))
    shaky("put", Queue(name="q", weight=9), 1)
    found = lab.store.get(Queue, "q")
    assert found is not None
    assert (found.version, found.weight) == (2, 9)


def test_a_closed_store_says_so(lab: Lab) -> None:
    other = lab.another()
    other.close()
    other.close()
    with pytest.raises(BackendDown, match="closed"):
        other.counts()
