"""What people do: cancel in two steps, revive, redrive dead letters, delete, list."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from lab import LEASE_S, Lab, new, ordered

from gotask.errors import InvalidInput
from gotask.model import Beat, Filter, Held, Job
from gotask.states import FINISHED, RULES, Event, State


def test_a_running_job_is_cancelled_in_two_steps(lab: Lab) -> None:
    # Given a running job that somebody cancels, twice
    job = lab.running("j")
    assert lab.store.move_many(["j", "unknown"], Event.CANCEL, "enough") == [True, False]
    assert lab.store.move_many(["j"], Event.CANCEL) == [True]
    # Then it runs on, its node is told at the next beat, and the holder ends it
    assert (lab.job("j").status, lab.job("j").cancel_requested, lab.job("j").reason) == (State.RUNNING, True, "enough")
    assert lab.store.extend_many([Beat("j", job.lease)], LEASE_S) == [Held.CANCEL]
    assert lab.settle(job, Event.CANCEL)
    assert (lab.job("j").status, lab.job("j").reason) == (State.CANCELLED, "enough")


@pytest.mark.parametrize("event", [Event.RELEASE, Event.RETRY, Event.SNOOZE], ids=lambda event: event.value)
def test_a_job_that_is_to_stop_does_not_go_on(lab: Lab, event: Event) -> None:
    job = lab.running("j")
    assert lab.store.move_many(["j"], Event.CANCEL) == [True]
    assert lab.settle(job, event, due_in=5.0)
    assert lab.job("j").status is State.CANCELLED


def test_a_job_that_is_to_stop_may_end_by_itself(lab: Lab) -> None:
    job = lab.running("j")
    assert lab.store.move_many(["j"], Event.CANCEL) == [True]
    assert lab.settle(job, Event.ACK)
    assert lab.job("j").status is State.SUCCESS


def test_the_lapse_of_a_job_that_is_to_stop_ends_it(lab: Lab) -> None:
    lab.running("j")
    assert lab.store.move_many(["j"], Event.CANCEL) == [True]
    lab.advance(LEASE_S)
    lab.tick_all()
    assert lab.job("j").status is State.CANCELLED


@pytest.mark.parametrize("state", RULES[Event.REVIVE].sources, ids=lambda state: state.value)
def test_a_revived_job_starts_as_if_new(lab: Lab, state: State) -> None:
    # Given a job that has failed before it ended
    if state is State.FAILED:
        lab.enqueue("j", priority=4)
        (job,) = lab.lease()
        assert lab.settle(job, Event.RETRY, due_in=0.0, error="one")
        lab.tick_all()
        (job,) = lab.lease()
        assert lab.settle(job, Event.BURY, queue="morgue", error="two", crashed=True)
    else:
        lab.in_state(state)
    # When it is revived
    assert lab.store.move_many(["j"], Event.REVIVE) == [True]
    # Then its counters, ends and limits are gone, its history is not, and it is back in its queue
    job = lab.job("j")
    assert (job.status, job.queue, job.origin_queue) == (State.PENDING, "default", None)
    assert (job.retry_count, job.crashes, job.cancel_requested, job.progress) == (0, 0, False, 0.0)
    assert (job.expires_at, job.due_at, job.error, job.result, job.completed_at) == (None, None, None, None, None)
    if state is State.FAILED:
        assert job.attempts is not None
        assert [a.error for a in job.attempts] == ["one", "two"]
    assert [leased.id for leased in lab.lease()] == ["j"]


@ordered
def test_a_revived_job_queues_up_anew(lab: Lab) -> None:
    lab.enqueue("first")
    assert lab.store.move_many(["first"], Event.CANCEL) == [True]
    lab.enqueue("second")
    assert lab.store.move_many(["first", "first"], Event.REVIVE) == [True, False]
    assert [job.id for job in lab.lease(5)] == ["second", "first"]


def test_a_job_is_not_revived_while_another_has_its_unique_key(lab: Lab) -> None:
    # Given two ended jobs of one key, and a live one
    for id in ("a", "b"):
        lab.enqueue(id, unique_key="k")
        assert lab.store.move_many([id], Event.CANCEL) == [True]
    lab.enqueue("c", unique_key="k")
    # Then none comes back before the live one ends, and one of the two after
    assert lab.store.move_many(["a", "b"], Event.REVIVE) == [False, False]
    assert lab.store.move_many(["c"], Event.CANCEL) == [True]
    assert lab.store.move_many(["a", "b"], Event.REVIVE) == [True, False]


def test_only_cancel_and_revive_are_done_by_hand(lab: Lab) -> None:
    lab.running("j")
    with pytest.raises(InvalidInput, match="ack"):
        lab.store.move_many(["j"], Event.ACK)
    assert lab.job("j").status is State.RUNNING


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_all_but_a_running_job_can_be_deleted(lab: Lab, state: State) -> None:
    lab.in_state(state)
    assert lab.store.drop_many(["j", "unknown", "j"]) == [state is not State.RUNNING, False, False]
    assert (lab.store.get_many(["j"]) == [None]) == (state is not State.RUNNING)
    assert lab.store.counts() == ({("default", State.RUNNING): 1} if state is State.RUNNING else {})


def test_what_was_asked_for_comes_back_in_its_order(lab: Lab) -> None:
    lab.enqueue("a", "b")
    assert [job and job.id for job in lab.store.get_many(["b", "x", "a", "b", "", "é", "a\0"])] == [
        "b", None, "a", "b", None, None, None,
    ]  # fmt: skip
    assert lab.store.get_many([]) == []
    assert lab.store.move_many(["é"], Event.CANCEL) == lab.store.drop_many(["é"]) == [False]


def pages(lab: Lab, filter: Filter) -> Iterator[list[Job]]:
    while True:
        page = lab.store.find(filter)
        yield page.jobs
        if page.next_cursor is None:
            return
        filter.cursor = page.next_cursor


def test_pages_neither_skip_nor_repeat_while_jobs_arrive(lab: Lab) -> None:
    # Given 55 jobs
    names = [f"j{n:02}" for n in range(55)]
    lab.enqueue(*names)
    # When they are listed page by page while new ones come and old ones move
    seen: list[str] = []
    for number, page in enumerate(pages(lab, Filter(limit=10))):
        seen += [job.id for job in page]
        lab.enqueue(f"late{number}")
        lab.lease(3)
    # Then each of the 55 was seen once, newest first
    assert seen == names[::-1]


def test_an_offset_skips(lab: Lab) -> None:
    lab.enqueue(*(f"j{n}" for n in range(9)))
    assert [job.id for job in lab.store.find(Filter(limit=3, offset=2)).jobs] == ["j6", "j5", "j4"]
    assert lab.store.find(Filter(offset=50)).jobs == []


def test_a_page_that_is_the_last_says_so(lab: Lab) -> None:
    lab.enqueue("a", "b")
    assert lab.store.find(Filter(limit=2)).next_cursor is None
    assert lab.store.find(Filter(limit=1)).next_cursor is not None


def test_filters_select(lab: Lab) -> None:
    # Given jobs that differ in one thing each
    lab.enqueue("plain")
    lab.enqueue("queue", queue="q")
    lab.enqueue("key", unique_key="k")
    lab.store.enqueue_many([new(id="type", type="mail")])
    lab.running("run", queue="r")
    lab.advance(100)
    lab.enqueue("late")

    def found(**fields: object) -> set[str]:
        return {job.id for job in lab.store.find(Filter(**fields)).jobs}  # type: ignore[arg-type]

    # Then each filter finds its own
    assert found(queue="q") == {"queue"}
    assert found(unique_key="k") == {"key"}
    assert found(type="mail") == {"type"}
    assert found(worker_id="node-1") == {"run"}
    assert found(status=State.RUNNING) == {"run"}
    assert found(status=State.RUNNING, queue="q") == set()
    assert found(created_after=lab.at(-50)) == {"late"}
    assert found(created_before=lab.at(-50)) == {"plain", "queue", "key", "type", "run"}


@pytest.mark.parametrize("cursor", ["", "x", "é", "czk5", "c3h4", "9" * 200, "s1; DROP TABLE jobs"])
def test_a_cursor_of_somebody_elses_is_an_error_or_a_page(lab: Lab, cursor: str) -> None:
    lab.enqueue("j")
    with suppress(InvalidInput):
        assert isinstance(lab.store.find(Filter(cursor=cursor)).jobs, list)
    assert lab.job("j").status is State.PENDING


def test_counts_are_by_queue_and_state(lab: Lab) -> None:
    assert lab.store.counts() == {}
    lab.enqueue("a", "b", queue="q")
    lab.running("c")
    assert lab.store.counts() == {("q", State.PENDING): 2, ("default", State.RUNNING): 1}
    assert not {state for _, state in lab.store.counts()} & FINISHED


def test_the_promise_is_a_sentence(lab: Lab) -> None:
    assert lab.store.promise.startswith("Once enqueue has answered")
    assert lab.store.promise.endswith(".")
