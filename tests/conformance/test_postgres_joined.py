"""Jobs that are part of the caller's own transaction. Of this storage alone, since no other shares a database with its user."""

from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from lab import new, until

from gotask import GoTask
from gotask.backends import postgres
from gotask.errors import InvalidInput, NotConfigured
from gotask.model import Filter
from gotask.states import State
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture
def app(server: Postgres) -> Iterator[GoTask]:
    made = GoTask(f"{server.url}?schema=joined")

    @made.task
    def add(a: int, b: int) -> int:
        return a + b

    yield made
    made.close()
    server.command("DROP SCHEMA IF EXISTS joined CASCADE")


def test_a_job_is_there_when_the_callers_transaction_commits(server: Postgres, app: GoTask) -> None:
    backend = app.service.backend
    with psycopg.connect(server.url) as link, closing(postgres.open(f"{server.url}?schema=joined&poll=60")) as seldom:
        # Given a listener that looks for itself but seldom, and a job enqueued in a transaction under way
        watch = seldom.watch(["queue:default"])
        until(lambda: not watch.wait(0.0), "it is quiet")
        handle = app.tasks["add"].options(connection=link, priority=3, notify=True).enqueue(a=1, b=2)
        again = app.enqueue("add", {"a": 1, "b": 2}, priority=3, id=handle.id, connection=link)
        assert again.id == handle.id
        # Then nobody sees it before the commit, and all do after
        assert backend.counts() == {}
        link.commit()
        assert watch.wait(10.0) == {"queue:default"}
        assert backend.counts() == {("default", State.PENDING): 1}


def test_a_commit_that_tells_nobody_is_found_by_a_look(server: Postgres, app: GoTask) -> None:
    with psycopg.connect(server.url) as link, closing(postgres.open(f"{server.url}?schema=joined&poll=60")) as seldom:
        # Given one that looks once a minute
        rare = seldom.watch(["queue:default"])
        until(lambda: not rare.wait(0.0), "it is quiet")
        app.tasks["add"].options(connection=link).enqueue(a=1, b=2)
        link.commit()
        # Then the commit itself told nobody, and did not have to wait for others that tell
        assert rare.wait(0.5) == set()
        # And when there is one that looks four times a second, as is usual, it finds the job and tells the other
        often = app.service.backend.watch(["queue:default"])
        assert often.wait(10.0) == {"queue:default"}
        assert rare.wait(10.0) == {"queue:default"}


def test_a_notification_without_a_transaction_is_refused(app: GoTask) -> None:
    with pytest.raises(InvalidInput, match="notify: it is for jobs in a transaction of yours; name its connection too"):
        app.tasks["add"].options(notify=True)


def test_a_job_goes_with_the_callers_transaction(server: Postgres, app: GoTask) -> None:
    with psycopg.connect(server.url) as link:
        with suppress(ZeroDivisionError), link.transaction():
            app.tasks["add"].options(connection=link).map([(1, 2), (3, 4)])
            raise ZeroDivisionError
        link.rollback()
    assert app.service.backend.find(Filter()).jobs == []


def test_what_cannot_be_joined_is_said(server: Postgres, app: GoTask) -> None:
    add = app.tasks["add"]
    with psycopg.connect(server.url, autocommit=True) as link:
        with pytest.raises(InvalidInput, match=r"connection: it commits each statement by itself"):
            add.options(connection=link).enqueue(a=1, b=2)
        with link.transaction():
            add.options(connection=link).enqueue(a=1, b=2)
    with pytest.raises(InvalidInput, match="connection: it is a str; give one of psycopg 3, or an SQLAlchemy session"):
        add.options(connection="postgres://").enqueue(a=1, b=2)
    with psycopg.connect(server.url) as link:
        link.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(InvalidInput, match="a transaction that is repeatable read"):
            add.options(connection=link, id="mine").enqueue(a=1, b=2)
    with closing(GoTask("memory://joined")) as other, pytest.raises(InvalidInput, match="only postgres can"):
        other.enqueue("add", {}, connection=object())


def test_another_database_is_said(server: Postgres, app: GoTask) -> None:
    server.command("CREATE DATABASE elsewhere")
    with (
        psycopg.connect(f"{server.url}".replace("/postgres", "/elsewhere").replace("//elsewhere:", "//postgres:")) as link,
        pytest.raises(NotConfigured, match="gotask migrate up"),
    ):
        app.tasks["add"].options(connection=link).enqueue(a=1, b=2)
    server.command("DROP DATABASE elsewhere")


def test_a_session_of_sqlalchemy_is_one_of_psycopg(server: Postgres, app: GoTask) -> None:
    orm = pytest.importorskip("sqlalchemy.orm")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(server.url.replace("postgres://", "postgresql+psycopg://"))
    with orm.Session(engine) as session:
        app.tasks["add"].options(connection=session).enqueue(a=1, b=2)
        session.rollback()
        app.tasks["add"].options(connection=session).enqueue(a=3, b=4)
        session.commit()
    engine.dispose()
    (job,) = app.service.backend.find(Filter()).jobs
    assert bytes(job.payload) == b'{"a":3,"b":4}'


def test_text_that_cannot_be_kept_is_refused_and_spoils_nothing(server: Postgres, app: GoTask) -> None:
    with psycopg.connect(server.url) as link:
        with pytest.raises(InvalidInput, match="unique_key: it has half a surrogate pair"):
            app.service.backend.joined(link).enqueue_many([new(), new(unique_key="\ud800")])  # type: ignore[attr-defined]
        app.service.backend.joined(link).enqueue_many([new()])  # type: ignore[attr-defined]
    assert app.service.backend.counts() == {("default", State.PENDING): 1}
