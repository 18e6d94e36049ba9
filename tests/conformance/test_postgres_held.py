"""Jobs that somebody holds: by hand in psql, or in a transaction that completes one and stays open. Of this storage alone."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

import psycopg
import pytest
from lab import LEASE_S, new, until

from gotask.backends import postgres
from gotask.errors import BackendDown
from gotask.model import Job, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import Servers

TIMEOUT_S: Final = 0.5  #: of a call
LATE_S: Final = TIMEOUT_S + 1.0  #: by when it must be over
SAYS: Final = r"did not let go of 'b', which another transaction has locked, within 0\.5 s; .* try again"


@pytest.fixture(params=["direct", "pooled"])
def store(servers: Servers, request: pytest.FixtureRequest) -> Iterator[postgres.Postgres]:
    door = servers.postgres if request.param == "direct" else servers.pgbouncer
    with closing(postgres.open(f"{servers.postgres.url}?schema=held")) as store:
        store.tick()  # makes the tables, which may take longer
    with closing(postgres.open(f"{door.url}?schema=held&timeout={TIMEOUT_S}")) as made:
        yield made
    servers.postgres.command("DROP SCHEMA held CASCADE")


@pytest.fixture
def link(servers: Servers) -> Iterator[psycopg.Connection]:
    with psycopg.connect(servers.postgres.url) as made:
        yield made


@pytest.fixture
def jobs(store: postgres.Postgres) -> list[Job]:
    store.enqueue_many([new(id=id) for id in "dcba"])
    return sorted(store.lease({"default": 4}, "node-1", LEASE_S), key=lambda job: job.id)


HOLDERS: Final[dict[str, Callable[[postgres.Postgres, psycopg.Connection, Job], object]]] = {
    "by hand": lambda _store, link, job: link.execute("SELECT FROM held.jobs WHERE id = %s FOR UPDATE", (job.id,)),
    "completed": lambda store, link, job: store.joined(link).complete(job.id, job.lease, b"1"),
}
ENDINGS: Final = {"plain": (Event.ACK,), "odd": (Event.BURY,), "mixed": (Event.ACK, Event.BURY)}


@contextmanager
def late() -> Iterator[None]:
    """What is in here waits for a job, and not for ever."""
    begun = time.monotonic()
    yield
    assert TIMEOUT_S * 0.8 < time.monotonic() - begun < LATE_S


def states(store: postgres.Postgres) -> str:
    return "".join(job.status[0] if job else "-" for job in store.get_many(list("abcd")))


@pytest.mark.parametrize("ends", ENDINGS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_one_that_is_held_does_not_hold_up_the_endings_of_others(
    store: postgres.Postgres, link: psycopg.Connection, jobs: list[Job], holder: str, ends: str
) -> None:
    # Given four jobs that run, one of which somebody holds, and who waits for another
    watch = store.watch(["job:d"])
    until(lambda: not watch.wait(0.0), "it is quiet")
    HOLDERS[holder](store, link, jobs[1])
    # When all are settled, and one that is gone already
    events = ENDINGS[ends]
    batch = [Settlement(job.id, job.lease, events[n % len(events)]) for n, job in enumerate(jobs)]
    batch.append(Settlement("a", jobs[0].lease - 1, Event.ACK))
    with late():
        assert store.settle_many(batch) == [True, None, True, True, False]
    # Then only that one is left, and the end of the others was told
    assert [job and job.status for job in store.get_many(["b"])] == [State.RUNNING]
    assert sum(n for (_, state), n in store.counts().items() if state is State.RUNNING) == 1
    assert watch.wait(10.0) == {"job:d"}
    watch.close()
    # And whoever asks again waits again, and ends it once nobody holds it
    with late():
        assert store.settle_many(batch[1:2]) == [None]
    link.rollback()
    assert store.settle_many(batch[1:2]) == [True]
    assert store.settle_many(batch) == [False] * 5
    assert State.RUNNING not in {state for _, state in store.counts()}


@pytest.mark.parametrize("ends", ENDINGS)
def test_whoever_does_not_wait_is_answered_at_once(
    store: postgres.Postgres, servers: Servers, link: psycopg.Connection, jobs: list[Job], ends: str
) -> None:
    # Given jobs that run, one of which somebody holds, and a store whose calls may take long
    HOLDERS["by hand"](store, link, jobs[1])
    events = ENDINGS[ends]
    batch = [Settlement(job.id, job.lease, events[n % len(events)]) for n, job in enumerate(jobs)]
    with closing(postgres.open(f"{servers.postgres.url}?schema=held&timeout=60")) as patient:
        begun = time.monotonic()
        # When they are to end without waiting for anybody, then all others do
        assert patient.settle_free(batch) == [True, None, True, True]
        assert time.monotonic() - begun < 10.0
        # And one that is free again ends, and none of them twice
        link.rollback()
        assert patient.settle_free(batch) == [False, True, False, False]


def test_one_that_is_held_does_not_hold_up_the_cancelling_of_others(
    store: postgres.Postgres, link: psycopg.Connection, jobs: list[Job]
) -> None:
    # Given jobs that wait and one that runs, of which somebody holds one
    assert store.settle_many([Settlement(job.id, job.lease, Event.RELEASE) for job in jobs[:3]]) == [True] * 3
    HOLDERS["by hand"](store, link, jobs[1])
    # When they are cancelled, then all others are
    with late(), pytest.raises(BackendDown, match=SAYS):
        store.move_many(["unknown", *"abcd"], Event.CANCEL, "enough")
    assert states(store) == "CPCR"
    found = store.get_many(["d"])[0]
    assert found is not None
    assert (found.cancel_requested, found.reason) == (True, "enough")
    link.rollback()
    assert store.move_many(["b"], Event.CANCEL) == [True]


def test_one_that_is_held_does_not_hold_up_the_revival_of_others(
    store: postgres.Postgres, link: psycopg.Connection, jobs: list[Job]
) -> None:
    # Given jobs that failed and one that runs, of which somebody holds one that failed
    assert store.settle_many([Settlement(job.id, job.lease, Event.BURY) for job in jobs[:3]]) == [True] * 3
    link.execute("SELECT FROM held.history WHERE id = 'b' FOR UPDATE")
    # When they are revived, then all others are
    with late(), pytest.raises(BackendDown, match=SAYS):
        store.move_many(["unknown", *"abcd"], Event.REVIVE)
    assert states(store) == "PFPR"
    link.rollback()
    assert store.move_many(list("abc"), Event.REVIVE) == [False, True, False]


@pytest.mark.parametrize(("table", "event"), [("jobs", Event.RELEASE), ("history", Event.BURY)])
def test_one_that_is_held_does_not_hold_up_the_deletion_of_others(
    store: postgres.Postgres, link: psycopg.Connection, jobs: list[Job], table: str, event: Event
) -> None:
    # Given a job that waits or failed and that somebody holds, one that waits, one that failed, and one that runs
    ends = (Event.RELEASE, event, Event.BURY)
    assert store.settle_many([Settlement(job.id, job.lease, end) for job, end in zip(jobs, ends, strict=False)]) == [True] * 3
    link.execute(f"SELECT FROM held.{table} WHERE id = 'b' FOR UPDATE")
    # When they are deleted, then all others are but the one that runs
    with late(), pytest.raises(BackendDown, match=SAYS):
        store.drop_many(["unknown", *"abcd"])
    assert states(store) == f"-{'P' if table == 'jobs' else 'F'}-R"
    link.rollback()
    assert store.drop_many(list("abcdb")) == [False, True, False, False, False]
    # And the numbers agree
    assert {state: n for (_, state), n in store.counts().items()} == {State.RUNNING: 1}


def test_what_is_held_for_a_moment_is_waited_for(store: postgres.Postgres, link: psycopg.Connection, jobs: list[Job]) -> None:
    # Given a transaction that completes a job, and commits while its node settles it after all
    HOLDERS["completed"](store, link, jobs[1])
    link.execute("SELECT 1")
    with closing(psycopg.connect(link.info.dsn, password=link.info.password)) as other:
        other.execute("SELECT FROM held.jobs WHERE id = 'c' FOR UPDATE")
        batch = [Settlement(job.id, job.lease, Event.ACK) for job in jobs]
        with late():
            assert store.settle_many(batch) == [True, None, None, True]
    link.commit()
    # Then the transaction's end counts, and the other was only held
    assert store.settle_many(batch[1:3]) == [False, True]
