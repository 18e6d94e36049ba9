"""A job completed in the caller's own transaction, and what the store knows of it. Of this storage alone."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from lab import until

from gotask import Context, GoTask, LeaseLost
from gotask.backends.postgres import Postgres as Store
from gotask.backends.postgres import open as open_store
from gotask.errors import InvalidInput
from gotask.model import Beat, Became, Held, Job, NewJob, Queue, Settlement
from gotask.states import Event, State
from gotask.testing import drain, inline
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres

SHORT_S = 0.4  #: of a lease that is to lapse


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture
def store(server: Postgres) -> Iterator[Store]:
    made = open_store(f"{server.url}?schema=complete")
    made.tick()
    yield made
    made.close()
    server.command("DROP SCHEMA IF EXISTS complete CASCADE")


@pytest.fixture
def link(server: Postgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url) as made:
        yield made


def running(store: Store, lease_s: float = 30.0, **fields: object) -> Job:
    store.enqueue_many([NewJob(type="work", **fields)])  # type: ignore[arg-type]
    (job,) = store.lease({"default": 1}, "node-1", lease_s)
    return job


def became(store: Store, job: Job) -> Became:
    (answer,) = store.completions([(job.id, job.lease)])
    return answer


def test_a_job_is_done_when_the_transaction_commits(store: Store, link: psycopg.Connection) -> None:
    # Given somebody who waits for a running job, and for a place in its queue
    store.put(Queue(name="default", max_workers=1))
    job = running(store)
    watch = store.watch([f"job:{job.id}", "queue:default"])
    until(lambda: not watch.wait(0.0), "it is quiet")
    # When it is completed in a transaction
    store.joined(link).complete(job.id, job.lease, b'{"a":1}')
    assert became(store, job) is Became.OPEN
    assert store.counts() == {("default", State.RUNNING): 1}
    link.commit()
    # Then it has ended as one that was acknowledged, and whoever waits hears of it from whoever asks
    assert became(store, job) is Became.DONE
    assert store.settle_many([Settlement(job.id, job.lease, Event.RETRY, due_in=1.0)]) == [False]
    (end,) = store.get_many([job.id])
    assert end is not None
    assert (end.status, bytes(end.result or b""), end.lease) == (State.SUCCESS, b'{"a":1}', job.lease)
    assert store.counts() == {("default", State.SUCCESS): 1}
    heard: set[str] = set()
    until(lambda: heard.update(watch.wait(1.0)) or heard == {f"job:{job.id}", "queue:default"}, "both are told")  # type: ignore[func-returns-value]
    watch.close()


def test_a_job_goes_on_when_the_transaction_does_not_commit(store: Store, link: psycopg.Connection) -> None:
    # Given a transaction that is rolled back, and one of which only the savepoint is
    for inner in (False, True):
        job = running(store)
        if inner:
            with suppress(ZeroDivisionError), link.transaction(), link.transaction():
                store.joined(link).complete(job.id, job.lease, b"null")
                raise ZeroDivisionError
            link.execute("SELECT 1")
            with suppress(ZeroDivisionError), link.transaction():
                store.joined(link).complete(job.id, job.lease, b"null")
                raise ZeroDivisionError
            link.commit()
        else:
            store.joined(link).complete(job.id, job.lease, b"null")
            link.rollback()
        # Then the job is still held, and ends as its node says
        assert became(store, job) is Became.UNDONE
        assert store.settle_many([Settlement(job.id, job.lease, Event.BURY, error="x")]) == [True]
        assert became(store, job) is Became.LOST


def test_an_open_transaction_is_waited_for_by_nobody(store: Store, link: psycopg.Connection) -> None:
    # Given a job that was completed in a transaction which is still open when its lease is over, beside another
    job, other = running(store, SHORT_S), running(store, SHORT_S)
    store.joined(link).complete(job.id, job.lease, b"null")
    time.sleep(SHORT_S / 2)
    # When a node extends both and asks, and others tick and lease
    begun = time.monotonic()
    held = store.extend_many([Beat(job.id, job.lease), Beat(other.id, other.lease, 50.0)], 30.0)
    assert held == [Held.HELD, Held.HELD]
    time.sleep(SHORT_S)
    tick = store.tick()
    assert (tick.lapsed, became(store, job)) == (0, Became.OPEN)
    assert tick.next_in is not None
    assert tick.next_in >= 0.1
    assert store.lease({"default": 5}, "node-2", 30.0) == []
    # Then none of that took long, and the commit holds
    assert time.monotonic() - begun < 2.0
    link.commit()
    assert became(store, job) is Became.DONE


@pytest.mark.parametrize("swallow", [False, True])
def test_a_lost_lease_spoils_the_transaction(swallow: bool, store: Store, link: psycopg.Connection) -> None:
    # Given a run whose job was given to another node
    job = running(store)
    assert store.settle_many([Settlement(job.id, job.lease, Event.RELEASE)]) == [True]
    (again,) = store.lease({"default": 1}, "node-2", 30.0)
    link.execute("CREATE TABLE complete.effects (n integer)")
    link.commit()
    # When it tries to complete the job
    link.execute("INSERT INTO complete.effects VALUES (1)")
    with pytest.raises(LeaseLost, match=rf"Job {job.id} is not held by this run any more"):
        store.joined(link).complete(job.id, job.lease, b"null")
    if swallow:
        link.commit()
    link.rollback()
    # Then nothing of its transaction is kept, even if it swallows the error, and the job is the other's
    assert link.execute("SELECT count(*) FROM complete.effects").fetchall() == [(0,)]
    assert (became(store, job), became(store, again)) == (Became.LOST, Became.UNDONE)


@pytest.mark.parametrize("how", ["complete", "settle", "extend"])
def test_a_change_in_between_costs_no_lease(how: str, store: Store, server: Postgres, link: psycopg.Connection) -> None:
    # Given a job whose row somebody is changing, as a beat does, or a request to stop it
    job = running(store)
    answers: list[bool] = []

    def work() -> None:
        match how:
            case "complete":
                store.joined(link).complete(job.id, job.lease, b"null")
                answers.append(True)
            case "settle":
                answers.extend(store.settle_many([Settlement(job.id, job.lease, Event.ACK)]))
            case "extend":
                answers.append(store.extend_many([Beat(job.id, job.lease)], 30.0) == [Held.HELD])

    # When its lease is ended or extended meanwhile
    with psycopg.connect(server.url) as other:
        other.execute("UPDATE complete.jobs SET progress = 50 WHERE id = %s", (job.id,))
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3)
    thread.join(10)
    link.commit()
    # Then it held
    assert answers == [True]


def test_where_nothing_can_be_completed_is_said(store: Store, server: Postgres, link: psycopg.Connection) -> None:
    app = GoTask("memory://complete")

    @app.task(max_retries=0)
    def work(ctx: Context) -> None:
        ctx.complete(link)

    # Given a plain call, a job that runs inline, and a storage without transactions of its users
    with pytest.raises(InvalidInput, match=r"ctx\.complete: there is no stored job to complete here"):
        work()
    with inline(app):
        assert "no stored job to complete here" in str(work.delay().error)
    with closing(app):
        job = work.delay()
        assert drain(app) == 1
        assert "this storage cannot take part in your transaction; only postgres can" in str(job.refresh().error)
    with (
        psycopg.connect(server.url, autocommit=True) as other,
        pytest.raises(InvalidInput, match="it commits each statement by itself; use it inside of"),
    ):
        store.joined(other)


def test_the_test_kit_runs_tasks_that_complete_themselves(server: Postgres) -> None:
    # Given tasks on the real store, run by drain()
    with GoTask(f"{server.url}?schema=drained") as app:

        @app.task(max_retries=1, retry_delay=0)
        def commits(ctx: Context, well: bool) -> object:
            with psycopg.connect(server.url) as own:
                ctx.complete(own, {"well": well})
                if not well and ctx.attempt == 1:
                    own.rollback()
            return "ignored"

        @app.task
        async def later(ctx: Context) -> object:
            return await asyncio.to_thread(commits.function, ctx, True)

        jobs = [commits.delay(well=True), commits.delay(well=False), later.delay()]
        drain(app)
        # Then they end as a node would end them
        assert [job.result(timeout=5) for job in jobs] == [{"well": True}, {"well": False}, {"well": True}]
        attempt = jobs[1].refresh().attempts[0]
        assert "did not commit: it was rolled back" in str(attempt.error)
    server.command("DROP SCHEMA drained CASCADE")


def test_a_session_of_sqlalchemy_can_complete(store: Store, server: Postgres) -> None:
    orm = pytest.importorskip("sqlalchemy.orm")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(server.url.replace("postgres://", "postgresql+psycopg://"))
    job = running(store)
    with orm.Session(engine) as session:
        store.joined(session).complete(job.id, job.lease, b"1")
        session.rollback()
        assert became(store, job) is Became.UNDONE
        store.joined(session).complete(job.id, job.lease, b"2")
        session.commit()
    engine.dispose()
    assert became(store, job) is Became.DONE
