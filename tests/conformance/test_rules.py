"""The state machine, generated from its tables: every state with every event, every due time, every fence."""

import pytest
from lab import LEASE_S, Lab

from gotask.model import CRASHES_MAX, Beat, Held, Job, Queue, Settlement
from gotask.states import DAY_S, DEAD_LETTER_KEEP_S, FINISHED, KEEP_S, ON_DUE, RULES, Event, State


def ask(lab: Lab, job: Job, event: Event) -> bool:
    """Ask for `event` as the holder of the job's latest lease would, or as people do."""
    if event is Event.LEASE:
        return bool(lab.lease())
    if event is Event.REVIVE or (event is Event.CANCEL and job.status is not State.RUNNING):
        return lab.store.move_many([job.id], event) == [True]
    return lab.settle(job, event)


@pytest.mark.parametrize("event", list(Event), ids=lambda event: event.value)
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_an_event_moves_a_job_or_changes_nothing(lab: Lab, state: State, event: Event) -> None:
    # Given a job in the state
    job = lab.in_state(state)
    before, counted = lab.job("j"), lab.store.counts()
    # When the event is asked for
    answer = ask(lab, job, event)
    # Then it goes where RULES says, or stays as it was
    if state in RULES[event].sources:
        assert answer
        assert lab.job("j").status is RULES[event].to
        assert lab.store.counts() == {("default", RULES[event].to): 1}
    else:
        assert not answer
        assert lab.job("j") == before
        assert lab.store.counts() == counted


@pytest.mark.parametrize("event", [e for e in Event if e not in (Event.LEASE, Event.REVIVE)], ids=lambda e: e.value)
@pytest.mark.parametrize("number", ["older", "newer", "none"])
def test_a_settlement_under_another_lease_is_fenced_off(lab: Lab, event: Event, number: str) -> None:
    # Given a job that was leased, released and leased again
    first = lab.running("j")
    assert lab.settle(first, Event.RELEASE)
    (second,) = lab.lease()
    assert second.lease > first.lease
    before = lab.job("j")
    # When somebody settles it with another number
    lease = {"older": first.lease, "newer": second.lease + 1, "none": 0}[number]
    held = lab.store.settle_many([Settlement("j", lease, event)])
    # Then nothing happens, and the holder still holds
    assert held == [False]
    assert lab.job("j") == before
    assert lab.settle(second, Event.ACK)


@pytest.mark.parametrize("event", [Event.ACK, Event.RETRY, Event.BURY], ids=lambda event: event.value)
def test_a_late_owner_is_fenced_off_when_another_node_has_the_job(lab: Lab, event: Event) -> None:
    # Given jobs whose lease lapsed, and which another node leased meanwhile
    lab.enqueue("a", "b")
    first = lab.lease(2)
    lab.advance(LEASE_S)
    other = lab.another()
    other.tick()
    second = other.lease({"default": 2}, "node-2", LEASE_S)
    before = other.get_many(["a", "b"])
    # When the first owner settles and beats, then nothing happens
    assert lab.store.settle_many([Settlement(job.id, job.lease, event) for job in first]) == [False, False]
    assert lab.store.extend_many([Beat("a", first[0].lease)], LEASE_S) == [Held.LOST]
    assert other.get_many(["a", "b"]) == before
    # And of a batch under both numbers only the new ones hold
    both = [Settlement(job.id, job.lease, event) for job in (*first, *second)]
    assert lab.store.settle_many(both) == [False, False, True, True]


def test_what_one_connection_leased_another_may_settle(lab: Lab) -> None:
    # Given two jobs of one lease, one of which another connection settles first
    lab.enqueue("a", "b")
    jobs = lab.lease(2)
    assert lab.another().settle_many([Settlement("b", jobs[1].lease, Event.BURY)]) == [True]
    # Then the leasing one is told which of them still held
    assert lab.store.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs]) == [True, False]
    assert [lab.job(id).status for id in "ab"] == [State.SUCCESS, State.FAILED]
    assert lab.store.counts() == {("default", State.SUCCESS): 1, ("default", State.FAILED): 1}


def test_a_lease_number_is_never_used_again(lab: Lab) -> None:
    # Given an id that ended, was deleted and enqueued again
    first = lab.running("j")
    assert lab.settle(first, Event.ACK)
    assert lab.store.drop_many(["j"]) == [True]
    second = lab.running("j")
    # Then the late settlement of the first does not meet the second
    assert second.lease > first.lease
    assert not lab.settle(first, Event.BURY)
    assert lab.job("j").status is State.RUNNING


def test_a_settlement_holds_once(lab: Lab) -> None:
    job = lab.running("j")
    # When it is sent twice, and twice in one batch
    assert lab.settle(job, Event.ACK)
    assert not lab.settle(job, Event.ACK)
    other = lab.running("k")
    twice = [Settlement("k", other.lease, Event.ACK), Settlement("k", other.lease, Event.BURY)]
    # Then the first of each holds
    assert lab.store.settle_many(twice) == [True, False]
    assert lab.job("k").status is State.SUCCESS


def test_a_lease_is_one_number_per_call_and_says_who_holds_what(lab: Lab) -> None:
    # Given two jobs
    lab.enqueue("a", "b")
    # When both are leased at once
    a, b = lab.lease(2)
    # Then they share a number, and the stored jobs are the leased ones
    assert a.lease == b.lease > 0
    assert a == lab.job("a")
    assert (a.worker_id, a.started_at, a.due_at) == ("node-1", lab.at(0), lab.at(LEASE_S))


def _due_job(lab: Lab, state: State) -> Job:
    """A job whose `due_at` is known to come."""
    if state is State.PENDING:
        lab.enqueue("j", expires_at=lab.at(60))
        return lab.job("j")
    return lab.in_state(state)


@pytest.mark.parametrize("state", list(ON_DUE), ids=lambda state: state.value)
def test_what_is_due_is_done_and_not_before(lab: Lab, state: State) -> None:
    # Given a job whose time is to come
    job = _due_job(lab, state)
    assert job.due_at is not None
    rest = job.due_at.timestamp() - lab.clock.now
    # When it has almost come, then nothing happens, and the tick says when
    lab.advance(rest - 1)
    early = lab.store.tick()
    assert (early.promoted, early.lapsed, early.expired, early.pruned) == (0, 0, 0, 0)
    assert early.next_in == pytest.approx(1, abs=0.01)
    assert lab.job("j").status is state
    # When it has come, then what ON_DUE says
    lab.advance(1)
    tick = lab.store.tick()
    done = {"promote": tick.promoted, "lapse": tick.lapsed, "expire": tick.expired, "prune": tick.pruned}
    assert done == {verb: int(verb == ON_DUE[state].verb) for verb in done}
    if ON_DUE[state].to:
        assert lab.job("j").status in ON_DUE[state].to
    else:
        assert lab.store.get_many(["j"]) == [None]
        assert lab.store.counts() == {}


@pytest.mark.parametrize("state", sorted(FINISHED), ids=lambda state: state.value)
def test_a_finished_job_is_kept_as_long_as_its_state_says(lab: Lab, state: State) -> None:
    if state in (State.SUCCESS, State.FAILED):
        job = lab.running("j")
        assert lab.settle(job, Event.ACK if state is State.SUCCESS else Event.BURY)
    else:
        lab.in_state(state)
    job = lab.job("j")
    assert job.completed_at is not None
    assert job.due_at is not None
    assert (job.due_at - job.completed_at).total_seconds() == KEEP_S[state]


def test_a_settlement_can_say_how_long_its_job_is_kept(lab: Lab) -> None:
    assert lab.settle(lab.running("j"), Event.ACK, due_in=5.0)
    assert lab.job("j").due_at == lab.at(5)


def test_what_an_ending_says_is_stored(lab: Lab) -> None:
    # Given jobs that end with a result and with an error
    assert lab.settle(lab.running("good"), Event.ACK, result=b'{"n": 1}')
    assert lab.settle(lab.running("bad"), Event.BURY, error="ValueError: no", reason="not retryable")
    # Then both can be read
    good, bad = lab.job("good"), lab.job("bad")
    assert good.result is not None
    assert bytes(good.result) == b'{"n": 1}'
    assert (good.error, good.completed_at, good.attempts) == (None, lab.at(0), None)
    assert (bad.error, bad.reason, bad.result) == ("ValueError: no", "not retryable", None)


def test_a_retry_counts_a_failure_and_keeps_its_story(lab: Lab) -> None:
    # Given a job that fails
    assert lab.settle(lab.running("j"), Event.RETRY, due_in=10.0, error="first")
    job = lab.job("j")
    assert (job.retry_count, job.crashes, job.due_at, job.error) == (1, 0, lab.at(10), "first")
    # When its time comes and it succeeds
    lab.advance(10)
    lab.tick_all()
    (again,) = lab.lease()
    assert lab.settle(again, Event.ACK)
    # Then the failed attempt is listed, and the job shows no error
    job = lab.job("j")
    assert job.error is None
    assert job.attempts is not None
    assert [(a.worker, a.outcome, a.error) for a in job.attempts] == [("node-1", "retry", "first")]


@pytest.mark.parametrize("event", [Event.SNOOZE, Event.RELEASE], ids=lambda event: event.value)
def test_neither_snooze_nor_release_burns_an_attempt(lab: Lab, event: Event) -> None:
    assert lab.settle(lab.running("j"), event, due_in=10.0)
    job = lab.job("j")
    assert (job.retry_count, job.crashes) == (0, 0)


def test_only_the_latest_attempts_are_kept(lab: Lab) -> None:
    lab.enqueue("j")
    for n in range(25):
        (job,) = lab.lease()
        assert lab.settle(job, Event.RETRY, due_in=0.0, error=str(n))
        lab.tick_all()
    attempts = lab.job("j").attempts
    assert attempts is not None
    assert [a.error for a in attempts] == [str(n) for n in range(5, 25)]


@pytest.mark.parametrize("event", [Event.RELEASE, Event.RETRY, Event.BURY], ids=lambda event: event.value)
def test_a_crashed_worker_is_counted_apart(lab: Lab, event: Event) -> None:
    assert lab.settle(lab.running("j"), event, crashed=True)
    assert lab.job("j").crashes == 1


def test_a_lapsed_job_waits_again_until_its_crashes_are_spent(lab: Lab) -> None:
    # Given a job whose node is lost again and again
    lab.enqueue("j")
    for n in range(1, CRASHES_MAX):
        (job,) = lab.lease()
        lab.advance(LEASE_S)
        lab.tick_all()
        # Then it waits again, and its late owner is fenced off
        assert (lab.job("j").status, lab.job("j").crashes) == (State.PENDING, n)
        assert not lab.settle(job, Event.ACK)
        attempts = lab.job("j").attempts
        assert attempts is not None
        assert attempts[-1].outcome == "lapse"
    # When the last is spent, then it is poison
    lab.lease()
    lab.advance(LEASE_S)
    lab.tick_all()
    job = lab.job("j")
    assert (job.status, job.reason, job.crashes) == (State.FAILED, "poison", CRASHES_MAX)


def test_poison_goes_to_the_dead_letter_queue(lab: Lab) -> None:
    assert lab.store.put(Queue(name="default", dead_letter_queue="morgue"))
    lab.enqueue("j")
    for _ in range(CRASHES_MAX):
        lab.lease()
        lab.advance(LEASE_S)
        lab.tick_all()
    job = lab.job("j")
    assert (job.status, job.queue, job.origin_queue) == (State.FAILED, "morgue", "default")


def test_a_beat_holds_a_lease_and_carries_progress(lab: Lab) -> None:
    # Given a running job that is extended just before its end
    job = lab.running("j")
    lab.advance(LEASE_S - 1)
    assert lab.store.extend_many([Beat("j", job.lease, 40.0, "half way")], LEASE_S) == [Held.HELD]
    # Then it lapses later, and its progress shows
    lab.advance(LEASE_S - 1)
    assert lab.store.tick().lapsed == 0
    assert (lab.job("j").progress, lab.job("j").progress_note) == (40.0, "half way")
    # And a beat that says nothing of progress leaves it
    assert lab.store.extend_many([Beat("j", job.lease)], LEASE_S) == [Held.HELD]
    assert lab.job("j").progress == 40.0


def test_a_beat_for_what_is_not_held_is_lost(lab: Lab) -> None:
    job = lab.running("j")
    done = lab.running("done")
    assert lab.settle(done, Event.ACK)
    beats = [Beat("j", job.lease + 7), Beat("done", done.lease), Beat("unknown", 1), Beat("j", job.lease)]
    assert lab.store.extend_many(beats, LEASE_S) == [Held.LOST, Held.LOST, Held.LOST, Held.HELD]


def test_ticks_do_at_most_what_they_are_told_and_say_that_more_is_due(lab: Lab) -> None:
    lab.enqueue(*(f"j{n}" for n in range(25)), delay=5.0)
    assert lab.store.tick().next_in == pytest.approx(5, abs=0.01)
    lab.advance(5)
    assert [lab.store.tick(10).promoted for _ in range(4)] == [10, 10, 5, 0]
    assert lab.store.tick().next_in is None


def test_a_dead_letter_is_kept_longer_and_in_its_own_queue(lab: Lab) -> None:
    assert lab.settle(lab.running("j"), Event.BURY, queue="morgue", error="no")
    job = lab.job("j")
    assert (job.status, job.queue, job.origin_queue) == (State.FAILED, "morgue", "default")
    assert lab.store.counts() == {("morgue", State.FAILED): 1}
    assert job.due_at == lab.at(DEAD_LETTER_KEEP_S)
    assert DEAD_LETTER_KEEP_S > KEEP_S[State.FAILED] > DAY_S
