"""What keeps PostgreSQL from cleaning up is found, and a node says so now and then."""

import logging
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from lab import until

from gotask import backends
from gotask.backends.postgres import Postgres as Store
from gotask.backends.postgres import open as open_store
from gotask.backends.postgres import pins
from gotask.node import outlook
from gotask.node.outlook import Outlook
from tests.servers.fixtures import StartPostgres
from tests.servers.postgres import Postgres


@pytest.fixture
def server(start_postgres: StartPostgres) -> Postgres:
    return start_postgres(max_prepared_transactions=2)


@pytest.fixture
def store(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(pins, "LIMIT_S", 0.3)
    with closing(open_store(server.url)) as made:
        made.counts()
        yield made


def test_a_node_tells_of_a_transaction_that_is_open_for_long(
    server: Postgres, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a node's outlook, a transaction that has changed something, and one that only looked and is idle since
    monkeypatch.setattr(outlook, "LOOK_S", 0.1)
    watch = Outlook(store)
    with caplog.at_level(logging.WARNING, "gotask.node"):
        watch.start()
        with (
            psycopg.connect(server.url, application_name="report") as link,
            psycopg.connect(server.url, application_name="calm") as calm,
        ):
            calm.execute("SELECT 1")
            link.execute("CREATE TABLE held (n integer)")
            # When it is open for longer than that, then it is said in one sentence, once
            until(lambda: bool(caplog.records), "it is said")
            pid = link.info.backend_pid
            told = caplog.messages[0]
            assert told.startswith(f"A transaction (pid {pid}, user postgres, report, idle in transaction) has been open for ")
            assert told.endswith(
                f" UTC, so PostgreSQL cannot clean up after jobs, and finds each of them more slowly: end it, if need be with "
                f"SELECT pg_terminate_backend({pid})."
            )
            before = len(caplog.records)
            for _ in range(5):
                watch.look()
            assert len(caplog.records) == before
            link.rollback()
            # And again, after a while, if it is another one, or still the same
            link.execute("CREATE TABLE held (n integer)")
            until(lambda: len(caplog.records) == before + 1, "another one is said")
            monkeypatch.setattr(outlook, "AGAIN_S", 0.0)
            until(lambda: len(caplog.records) > before + 1, "it is said again")
        # And nothing of it once it has ended
        assert store.warnings() == {}
    watch.stop()


def test_a_prepared_transaction_that_nobody_ends_is_found(server: Postgres, store: Store) -> None:
    with psycopg.connect(server.url, autocommit=True) as link:
        for statement in ("BEGIN", "CREATE TABLE held (n integer)", "PREPARE TRANSACTION 'it''s'"):
            link.execute(statement)
        until(lambda: bool(store.warnings()), "it is old enough")
        (told,) = store.warnings().values()
        assert told.startswith("A prepared transaction (it's, user postgres) has been open for ")
        assert told.endswith(": COMMIT PREPARED or ROLLBACK PREPARED 'it''s'.")
        link.execute("ROLLBACK PREPARED 'it''s'")
    assert store.warnings() == {}


def test_other_storages_have_nothing_to_say() -> None:
    with closing(backends.open("memory://outlook")) as store:
        watch = Outlook(store)
        watch.start()
        watch.look()
        watch.stop()
