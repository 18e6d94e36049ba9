"""What can be done with jobs and queues, the same through the service and over HTTP."""

import threading
import time
import uuid
from typing import Any

import msgspec
import pytest
from conftest import House
from msgspec import Raw

from gotask.calls import Batch, QueueChange
from gotask.errors import Conflict, InvalidInput, NotFound, TooLarge
from gotask.model import Filter, NewJob, Queue
from gotask.states import Event, State


def new_id() -> str:
    return f"job-{uuid.uuid4().hex[:12]}"


def test_a_job_is_created_and_found(house: House) -> None:
    # When a job is created
    queue = house.queue_with()
    made = house.door.create_job(NewJob(type="echo", queue=queue, payload=Raw(b'{"x": [1, 2.50]}'), metadata={"who": "me"}))
    # Then it waits, has an id, and its payload is kept to the byte
    assert (made.status, made.id != "", made.attempts) == (State.PENDING, True, [])
    assert bytes(made.payload) == b'{"x": [1, 2.50]}'
    # And it is found again, and listed
    found = house.door.get_job(made.id)
    assert (found.id, found.metadata, found.created_at) == (made.id, {"who": "me"}, made.created_at)
    page = house.door.list_jobs(Filter(queue=queue))
    assert ([job.id for job in page.jobs], page.count, page.limit, page.offset) == ([made.id], 1, 50, 0)


def test_an_id_makes_one_job(house: House) -> None:
    # Given a job with an id
    job = NewJob(type="echo", id=new_id(), queue=house.queue_with(), priority=2)
    first = house.door.create_job(job)
    # When it is sent again, then the job that stands is the answer
    assert house.door.create_job(job).created_at == first.created_at
    # When another body comes under its id, then that is a conflict
    with pytest.raises(Conflict, match="another body"):
        house.door.create_job(msgspec.structs.replace(job, priority=3))


def test_a_bad_job_does_not_spoil_its_batch(house: House) -> None:
    # Given a batch in which some jobs are bad, each in its way
    queue, known = house.queue_with(), new_id()
    house.door.create_job(NewJob(type="echo", id=known, queue=queue))
    items = [
        {"type": "echo", "queue": queue, "id": new_id()},
        {"type": "no spaces please", "queue": queue},
        {"type": "echo", "queue": queue, "id": known},
        {"type": "other", "queue": queue, "id": known},
        {"type": "echo", "queue": queue, "colour": "red"},
        {"type": "echo", "queue": queue},
    ]
    # When it is created
    answer = house.door.create_jobs(Batch([Raw(msgspec.json.encode(item)) for item in items]))
    # Then each is answered for itself, in order, and only the good ones are stored
    assert [item.outcome for item in answer.items] == ["created", "invalid", "duplicate", "conflict", "invalid", "created"]
    assert [item.code for item in answer.items] == [None, 422, None, 409, 422, None]
    assert "colour" in (answer.items[4].error or "")
    assert (answer.created, answer.duplicates, answer.refused) == (2, 1, 3)
    assert house.door.list_jobs(Filter(queue=queue)).count == 3


def test_pages_go_on_where_they_ended(house: House) -> None:
    # Given seven jobs
    ids = [new_id() for _ in range(7)]
    queue = house.queue_with(*ids)
    # When they are listed three at a time by cursor
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = house.door.list_jobs(Filter(queue=queue, limit=3, cursor=cursor))
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    # Then each comes once, newest first; and offset does as well
    assert seen == ids[::-1]
    assert [job.id for job in house.door.list_jobs(Filter(queue=queue, limit=3, offset=5)).jobs] == ids[1::-1]


def test_a_waiting_job_is_cancelled_revived_and_deleted(house: House) -> None:
    # Given a job that waits
    id = new_id()
    house.queue_with(id)
    # When it is cancelled, then it ends
    assert "cancelled" in house.door.cancel_job(id).message
    assert house.door.get_job(id).status is State.CANCELLED
    # And cancelling it again is a conflict that names its state and what is possible
    with pytest.raises(Conflict, match=r"CANCELLED.*possible now: retry, delete\."):
        house.door.cancel_job(id)
    # When it is retried, then it waits again, and retrying that is a conflict
    assert house.door.retry_job(id).status is State.PENDING
    with pytest.raises(Conflict, match=r"PENDING.*possible now: cancel, delete\."):
        house.door.retry_job(id)
    # When it is deleted, then it is gone
    house.door.delete_job(id)
    with pytest.raises(NotFound, match=id):
        house.door.get_job(id)


def test_a_running_job_is_asked_to_stop(house: House) -> None:
    # Given a job that runs
    id = new_id()
    queue = house.queue_with(id)
    job = house.leased(queue)
    # Then it cannot be deleted, and its attempt is shown as under way
    with pytest.raises(Conflict, match=r"RUNNING.*possible now: cancel\."):
        house.door.delete_job(id)
    (attempt,) = house.door.get_job(id).attempts or []
    assert (attempt.started_at is not None, attempt.ended_at, attempt.outcome) == (True, None, "")
    # When it is cancelled, then it is marked and still runs until its node ends it
    assert "asked to stop" in house.door.cancel_job(id).message
    shown = house.door.get_job(id)
    assert (shown.status, shown.cancel_requested) == (State.RUNNING, True)
    house.settle(job, Event.CANCEL)
    assert house.door.get_job(id).status is State.CANCELLED


def test_attempts_are_listed_with_the_last_one(house: House) -> None:
    # Given a job that failed once and then succeeded
    id = new_id()
    queue = house.queue_with(id)
    house.settle(house.leased(queue), Event.RETRY, due_in=0.0, error="first time unlucky")
    while house.store.tick().promoted:
        pass
    house.settle(house.leased(queue), Event.ACK, due_in=60.0, result=b'"done"')
    # When it is looked at
    job = house.door.get_job(id)
    # Then both attempts are there, each once, and the result is
    assert job.attempts is not None
    assert [(attempt.outcome, attempt.error) for attempt in job.attempts] == [("retry", "first time unlucky"), ("ack", None)]
    assert job.result is not None
    assert (job.status, bytes(job.result)) == (State.SUCCESS, b'"done"')


def test_waiting_for_a_job_ends_when_it_does(house: House) -> None:
    # Given a job that runs, and somebody who waits for it
    id = new_id()
    queue = house.queue_with(id)
    job = house.leased(queue)
    ended: list[Any] = []
    waiter = threading.Thread(target=lambda: ended.append(house.door.wait_job(id, 20.0)))
    waiter.start()
    # When the job ends
    house.settle(job, Event.ACK, due_in=60.0)
    began = time.monotonic()
    waiter.join(20.0)
    # Then the waiting does, long before its time
    assert [one.status for one in ended] == [State.SUCCESS]
    assert time.monotonic() - began < 4.0
    # And waiting for a job that does not end gives it as it is
    other = new_id()
    house.queue_with(other)
    assert house.door.wait_job(other, 0.1).status is State.PENDING
    with pytest.raises(NotFound):
        house.door.wait_job("nobody-knows-me", 1.0)


def test_a_queue_is_made_changed_and_deleted(house: House) -> None:
    # When a queue is made
    name = house.queue_with()
    made = house.door.create_queue(Queue(name=name, max_workers=20, max_retries=5, weight=10))
    assert (made.name, made.max_workers, made.max_retries, made.weight) == (name, 20, 5, 10)
    # Then making it again is a conflict
    with pytest.raises(Conflict, match="already"):
        house.door.create_queue(Queue(name=name))
    # When it is changed, then what was left out stays
    changed = house.door.update_queue(name, QueueChange(max_workers=3, dead_letter_queue="dead"))
    assert (changed.max_workers, changed.weight, changed.dead_letter_queue) == (3, 10, "dead")
    # And a change that was made for another version is refused, as is another name
    with pytest.raises(Conflict, match="version"):
        house.door.update_queue(name, QueueChange(weight=1, version=made.version))
    with pytest.raises(InvalidInput, match="renamed"):
        house.door.update_queue(name, QueueChange(name="other"))
    # When a job waits in it, then it cannot be deleted until it is purged
    house.door.create_job(NewJob(type="echo", queue=name))
    with pytest.raises(Conflict, match="1 unfinished"):
        house.door.delete_queue(name)
    assert house.door.purge_queue(name).deleted == 1
    house.door.delete_queue(name)
    with pytest.raises(NotFound, match=name):
        house.door.get_queue(name)


def test_a_paused_queue_starts_nothing(house: House) -> None:
    # Given a queue that nobody made, with a job in it
    queue = house.queue_with(new_id())
    # When it is paused, then its job is not leased, and its stats say why
    assert "paused" in house.door.pause_queue(queue).message
    assert house.store.lease({queue: 1}, "node-1", 30.0) == []
    stats = house.door.queue_stats(queue)
    assert (stats.queue_name, stats.pending_count, stats.running_count, stats.paused) == (queue, 1, 0, True)
    # When it is resumed, then it is
    house.door.resume_queue(queue)
    house.leased(queue)
    assert house.door.queue_stats(queue).running_count == 1


def test_a_queue_that_nobody_made_has_the_defaults(house: House) -> None:
    # Given a queue known only by its job
    queue = house.queue_with(new_id())
    # Then it is listed and has settings and stats; one that was never heard of has not
    listed = house.door.list_queues()
    assert queue in [one.name for one in listed.queues]
    assert listed.count == len(listed.queues)
    assert house.door.get_queue(queue) == Queue(name=queue)
    for ask in (house.door.get_queue, house.door.queue_stats, house.door.delete_queue):
        with pytest.raises(NotFound, match="nowhere"):
            ask("nowhere")
    assert house.door.purge_queue("nowhere").deleted == 0


def test_a_queue_is_paused_before_its_first_job(house: House) -> None:
    # Given queues that nobody made, one paused and one resumed
    early, other = f"q-{new_id()}", f"q-{new_id()}"
    house.door.pause_queue(early)
    house.door.resume_queue(other)
    # Then both are there with their defaults
    assert house.door.get_queue(early) == Queue(name=early, paused=True, version=1)
    assert house.door.get_queue(other) == Queue(name=other, version=1)
    # And what is no name makes no queue
    with pytest.raises(InvalidInput, match="name: 'a b' is not a name; use letters"):
        house.door.pause_queue("a b")


def test_a_queue_is_not_its_own_dead_letter_queue(house: House) -> None:
    # When a queue is made so, or one that stands is changed so, then it is refused
    with pytest.raises(InvalidInput, match="dead_letter_queue: 'round' is the queue itself"):
        house.door.create_queue(Queue(name="round", dead_letter_queue="round"))
    queue = house.queue_with(new_id())
    with pytest.raises(InvalidInput, match="dead_letter_queue"):
        house.door.update_queue(queue, QueueChange(dead_letter_queue=queue))
    assert house.door.get_queue(queue).dead_letter_queue is None


def test_purge_deletes_what_waits_and_nothing_else(house: House) -> None:
    # Given a queue with one job that runs, one that waits and one for later
    running, waiting, later = new_id(), new_id(), new_id()
    queue = house.queue_with(running)
    house.leased(queue)
    house.door.create_job(NewJob(type="echo", id=waiting, queue=queue))
    house.door.create_job(NewJob(type="echo", id=later, queue=queue, delay=3600.0))
    # When it is purged, then only the running one is left
    assert house.door.purge_queue(queue).deleted == 2
    assert [job.id for job in house.door.list_jobs(Filter(queue=queue)).jobs] == [running]


def test_the_system_in_numbers(house: House) -> None:
    # Given a queue with two jobs
    queue = house.queue_with(new_id(), new_id())
    # Then the numbers say so
    numbers = house.door.metrics()
    assert numbers.queues[queue]["PENDING"] == 2
    assert numbers.jobs["PENDING"] >= 2
    assert "survives" in numbers.storage
    assert house.door.list_workers().count == numbers.workers
    assert (house.door.health().status, house.door.ready().status) == ("ok", "ready")


def too_deep() -> Raw:
    return Raw(b"[" * 100 + b"]" * 100)


@pytest.mark.parametrize(
    ("fields", "error", "word"),
    [
        ({"type": "with space"}, InvalidInput, "type"),
        ({"queue": "a/b"}, InvalidInput, "queue"),
        ({"priority": 11}, InvalidInput, "priority"),
        ({"delay": -1.0}, InvalidInput, "delay"),
        ({"payload": too_deep()}, InvalidInput, "32"),
        ({"payload": Raw(b'{"x": 1e400}')}, InvalidInput, "payload"),
        ({"payload": Raw(b'"' + b"x" * 1_100_000 + b'"')}, TooLarge, "1048576"),
    ],
)
def test_a_job_out_of_bounds_is_refused(house: House, fields: dict[str, Any], error: type[Exception], word: str) -> None:
    # When a job breaks a bound, then one sentence names the field, and nothing is stored
    queue, id = house.queue_with(), new_id()
    with pytest.raises(error, match=word):
        house.door.create_job(msgspec.structs.replace(NewJob(type="echo", id=id, queue=queue), **fields))
    assert house.store.get_many([id]) == [None]
