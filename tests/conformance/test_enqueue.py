"""Accepting jobs: what is stored, duplicates, conflicts, unique keys, batches of all sizes."""

import threading
from datetime import timedelta

import pytest
from lab import Lab, new, until
from msgspec import Raw, json, structs

from gotask.model import Enqueued, Filter, Job, JobBody, NewJob, Settlement, Strategy
from gotask.states import FINISHED, LIVE, Event, State


def outcomes(answers: list[Enqueued]) -> list[str]:
    return [answer.outcome for answer in answers]


def test_everything_that_was_said_is_stored(lab: Lab) -> None:
    # Given a job that uses every field
    asked = NewJob(
        id="j", type="mail", queue="q", payload=Raw('{"é": [1, 2.5, "\\u0000"]}'.encode()), priority=7,
        scheduled_at=lab.at(-5), expires_at=lab.at(500), unique_key="k é\0", metadata={"a": 1, "b": None, "c": "x", "d": True},
        max_retries=1, retry_strategy=Strategy.LINEAR, retry_delay=2.5, max_retry_delay=10.0, retry_jitter=False, timeout=9.0,
    )  # fmt: skip
    # When it is enqueued
    (answer,) = lab.store.enqueue_many([asked])
    # Then the answer and every way to read it agree with what was asked
    stored = lab.job("j")
    assert answer == Enqueued("created", stored)
    assert lab.store.find(Filter()).jobs == [stored]
    for name in JobBody.__struct_fields__:
        assert getattr(stored, name) == getattr(asked, name), name
    assert (stored.status, stored.created_at, stored.updated_at) == (State.PENDING, lab.at(0), lab.at(0))
    (leased,) = lab.lease(queue="q")
    assert leased == lab.job("j")


def test_neighbours_in_a_batch_keep_what_is_their_own(lab: Lab) -> None:
    # Given jobs each of which differs from the one before in one thing, or in nothing
    said = [
        {}, {}, {"type": "other"}, {"queue": "q"}, {}, {"priority": 9}, {"delay": 5.0}, {"delay": 5.0},
        {"expires_at": lab.at(9)},
        {"unique_key": "k"}, {"unique_key": "l"}, {"unique_key": "k"},
        {"metadata": {"a": 1}}, {"metadata": {"a": True}}, {"metadata": {"a": 1.0}},
        {"timeout": 1.0}, {"max_retries": 1}, {"payload": Raw(b"[1]")}, {},
    ]  # fmt: skip
    asked = [structs.replace(new(id=f"j{at:02}"), **fields) for at, fields in enumerate(said)]
    # When they are enqueued in one batch
    answers = lab.store.enqueue_many(asked)
    # Then each is stored as it was asked for, and the one whose unique key is held is answered with the holder
    assert [at for at, answer in enumerate(answers) if answer.outcome == "duplicate"] == [11]
    assert answers[11].job == lab.job("j09")
    for one, answer in zip(asked, answers, strict=True):
        if answer.outcome == "created":
            stored = lab.job(one.id)
            assert answer.job == stored
            for name in JobBody.__struct_fields__:
                assert json.encode(getattr(stored, name)) == json.encode(getattr(one, name)), (one.id, name)
            assert (stored.due_at is not None) == (one.delay is not None or one.expires_at is not None)


def test_what_was_not_said_is_none(lab: Lab) -> None:
    lab.store.enqueue_many([NewJob(type="noop")])
    (job,) = lab.store.find(Filter()).jobs
    plain = Job(id=job.id, type="noop", created_at=lab.at(0), updated_at=lab.at(0))
    assert job == plain


def test_ids_are_made_and_rise(lab: Lab) -> None:
    # When thousands are made, in batches and from two connections
    other = lab.another()
    made = [a.job.id for _ in range(5) for s in (lab.store, other) for a in s.enqueue_many([new()] * 200)]
    # Then they differ, and sort in the order they were made in
    assert len(set(made)) == 2000
    assert made == sorted(made)


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_batches_of_every_size_live_a_whole_life(lab: Lab, size: int) -> None:
    # When a batch is enqueued, leased, extended and settled
    answers = lab.store.enqueue_many([new() for _ in range(size)])
    assert outcomes(answers) == ["created"] * size
    jobs = lab.lease(size)
    assert [job.id for job in jobs] == [answer.job.id for answer in answers]
    held = lab.store.settle_many([Settlement(job.id, job.lease, Event.ACK, result=b"%d" % n) for n, job in enumerate(jobs)])
    # Then each answer is in its place
    assert held == [True] * size
    stored = lab.store.get_many([job.id for job in jobs])
    assert [job is not None and job.result == Raw(b"%d" % n) for n, job in enumerate(stored)] == [True] * size
    assert lab.store.counts() == ({("default", State.SUCCESS): size} if size else {})
    assert lab.store.move_many([job.id for job in jobs], Event.CANCEL) == [False] * size
    assert lab.store.drop_many([job.id for job in jobs]) == [True] * size
    assert lab.store.extend_many([], 30.0) == []


def test_one_bad_among_many_spoils_nothing(lab: Lab) -> None:
    # Given a job that stands, and a batch in which one disagrees with it and one repeats it
    lab.enqueue("j7", priority=3)
    batch = [new(id=f"j{n}", priority=3 if n == 7 else 1) for n in range(50)]
    batch.append(new(id="j7", priority=4))
    # When it is enqueued, then only those two are told so
    answers = lab.store.enqueue_many(batch)
    assert [n for n, a in enumerate(answers) if a.outcome == "duplicate"] == [7]
    assert [n for n, a in enumerate(answers) if a.outcome == "conflict"] == [50]
    # And one bad settlement among many good ones fails alone
    jobs = lab.lease(50)
    jobs[20] = structs.replace(jobs[20], lease=jobs[20].lease + 1)
    held = lab.store.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs])
    assert [n for n, answer in enumerate(held) if not answer] == [20]


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_an_id_is_one_job_for_as_long_as_it_is_remembered(lab: Lab, state: State) -> None:
    # Given a job in any state
    lab.in_state(state)
    stands = lab.job("j")
    same = new(id="j", expires_at=stands.expires_at)
    # When it is enqueued again, with the same body and with another
    answers = lab.store.enqueue_many([same, structs.replace(same, payload=Raw(b"[]"))])
    # Then the one that stands is the answer, and it is unchanged
    assert answers == [Enqueued("duplicate", stands), Enqueued("conflict", stands)]
    assert lab.job("j") == stands


def test_a_delay_is_not_part_of_the_body(lab: Lab) -> None:
    lab.enqueue("j", delay=60.0)
    lab.advance(5)
    assert outcomes(lab.store.enqueue_many([new(id="j", delay=60.0)])) == ["duplicate"]


def test_a_dead_letter_is_known_by_the_queue_it_came_from(lab: Lab) -> None:
    assert lab.settle(lab.running("j"), Event.BURY, queue="morgue")
    assert outcomes(lab.store.enqueue_many([new(id="j"), new(id="j", queue="morgue")])) == ["duplicate", "conflict"]


def test_twice_in_one_batch_is_one_job(lab: Lab) -> None:
    batch = [new(id="j"), new(id="j"), new(id="j", priority=9), new(id="a", unique_key="k"), new(id="b", unique_key="k")]
    answers = lab.store.enqueue_many(batch)
    assert outcomes(answers) == ["created", "duplicate", "conflict", "created", "duplicate"]
    assert [answer.job.id for answer in answers] == ["j", "j", "j", "a", "a"]
    assert lab.store.counts() == {("default", State.PENDING): 2}


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_a_unique_key_is_held_while_its_job_lives(lab: Lab, state: State) -> None:
    # Given a holder in the state
    lab.enqueue("j", unique_key="k", delay=1.0)
    assert outcomes(lab.store.enqueue_many([new(id="early", unique_key="k")])) == ["duplicate"]
    lab.store.drop_many(["j"])
    _holder(lab, state)
    # When another job wants the key
    (answer,) = lab.store.enqueue_many([new(id="other", unique_key="k")])
    # Then it gets it only if the holder has ended
    assert answer.outcome == ("duplicate" if state in LIVE else "created")
    assert answer.job.id == ("j" if state in LIVE else "other")


def _holder(lab: Lab, state: State) -> None:
    fields: dict[str, object] = {"unique_key": "k"}
    if state is State.SCHEDULED:
        lab.enqueue("j", delay=60.0, **fields)
    elif state is State.EXPIRED:
        lab.enqueue("j", expires_at=lab.at(10), **fields)
        lab.advance(10)
        lab.store.tick()
    elif state in (State.PENDING, State.CANCELLED):
        lab.enqueue("j", **fields)
        if state is State.CANCELLED:
            lab.store.move_many(["j"], Event.CANCEL)
    else:
        job = lab.running("j", **fields)
        ends = {State.RETRYING: Event.RETRY, State.SUCCESS: Event.ACK, State.FAILED: Event.BURY}
        if state in ends:
            assert lab.settle(job, ends[state], due_in=60.0)
    assert lab.job("j").status is state


def test_a_sleeper_that_is_twice_in_one_batch_is_answered_as_it_is_stored(lab: Lab) -> None:
    sleeper, same = lab.store.enqueue_many([new(id="j", delay=60.0), new(id="j", delay=60.0)])
    assert sleeper.job == same.job == lab.job("j")


def test_a_unique_key_races_its_holders_end(lab: Lab) -> None:
    # Given a holder that ends while others ask for its key
    job = lab.running("j", unique_key="k")
    start, created = threading.Barrier(4), []

    def ask(store_number: int) -> None:
        store = stores[store_number]
        start.wait(10)
        for n in range(30):
            (answer,) = store.enqueue_many([new(id=f"{store_number}-{n}", unique_key="k")])
            if answer.outcome == "created":
                created.append(answer.job.id)

    stores = [lab.another() for _ in range(3)]
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    start.wait(10)
    assert lab.settle(job, Event.ACK)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    # Then at most one got it at that instant, and one live job has it in the end
    assert len(created) <= 1
    (answer,) = lab.store.enqueue_many([new(id="last", unique_key="k")])
    assert (answer.outcome == "created") == (not created)
    assert len([j for j in lab.store.find(Filter(unique_key="k")).jobs if j.status not in FINISHED]) == 1


def test_a_delay_is_judged_by_the_stores_clock(lab: Lab) -> None:
    # Given jobs for later, by delay and by date, and one whose date has passed
    lab.store.enqueue_many(
        [new(id="a", delay=10.0), new(id="b", scheduled_at=lab.at(20)), new(id="c", scheduled_at=lab.at(-1))]
    )
    assert [lab.job(id).status for id in "abc"] == [State.SCHEDULED, State.SCHEDULED, State.PENDING]
    assert (lab.job("a").due_at, lab.job("b").due_at) == (lab.at(10), lab.at(20))
    # When their times come, then each can be leased
    assert [job.id for job in lab.lease(9)] == ["c"]
    lab.advance(10)
    lab.tick_all()
    assert [job.id for job in lab.lease(9)] == ["a"]
    lab.advance(10)
    lab.tick_all()
    assert [job.id for job in lab.lease(9)] == ["b"]


def test_a_scheduled_job_can_expire_once_promoted(lab: Lab) -> None:
    lab.enqueue("j", delay=10.0, expires_at=lab.at(15))
    lab.advance(10)
    lab.tick_all()
    assert lab.job("j").due_at == lab.at(5)
    lab.advance(5)
    # Then it is not leased any more, even before a tick says so
    assert lab.lease() == []
    lab.tick_all()
    assert lab.job("j").status is State.EXPIRED


def test_a_job_that_was_tried_does_not_expire(lab: Lab) -> None:
    job = lab.running("j", expires_at=lab.at(10))
    assert lab.settle(job, Event.RETRY, due_in=20.0)
    lab.advance(20)
    lab.tick_all()
    assert lab.job("j").due_at is None
    assert [job.id for job in lab.lease()] == ["j"]


def test_a_released_job_can_still_expire(lab: Lab) -> None:
    job = lab.running("j", expires_at=lab.at(10))
    assert lab.settle(job, Event.RELEASE)
    lab.advance(10)
    assert lab.lease() == []
    until(lambda: lab.store.tick().next_in != 0, "all that is due is done")
    assert lab.job("j").status is State.EXPIRED


def test_instants_keep_their_microseconds(lab: Lab) -> None:
    lab.enqueue("j", scheduled_at=lab.at(60) + timedelta(microseconds=123457))
    assert lab.job("j").scheduled_at == lab.job("j").due_at == lab.at(60) + timedelta(microseconds=123457)
