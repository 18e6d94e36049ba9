"""What the PostgreSQL storage leaves to no chance: durable settings, a limit on every wait, connections made anew."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
from lab import LEASE_S, new, refusal, until

from gotask import backends
from gotask.backends import postgres
from gotask.errors import BackendDown, GotaskError, NotConfigured
from gotask.model import Beat, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import Servers, StartPostgres
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres

TIMEOUT_S: Final = 0.5  #: of a call
LATE_S: Final = TIMEOUT_S + 1.0  #: by when it must be over


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server whose settings are changed, and changed back."""
    folder: Path = tmp_path_factory.mktemp("promises")
    with Postgres(folder) as made:
        made.command("CREATE ROLE app SUPERUSER LOGIN PASSWORD 'app'")
        made.command("CREATE DATABASE lax")
        yield made


# durable settings


def settings(server: Postgres, statement: str) -> None:
    server.command(statement)
    server.command("SELECT pg_reload_conf()")
    time.sleep(0.2)


#: where it is set -> the statement that sets it, but for its last words, and what is off
LAX: Final = {
    "fsync": ("SYSTEM", "fsync"),
    "pages": ("SYSTEM", "full_page_writes"),
    "of the server": ("SYSTEM", "synchronous_commit"),
    "of the database": ("DATABASE lax", "synchronous_commit"),
    "of the role": ("ROLE app", "synchronous_commit"),
    "of the role in the database": ("ROLE app IN DATABASE lax", "synchronous_commit"),
}


@pytest.mark.parametrize("where", LAX)
def test_a_server_that_may_lose_jobs_is_refused_wherever_that_is_set(server: Postgres, where: str) -> None:
    scope, name = LAX[where]
    url = f"postgres://app:app@{server.address}/lax"
    settings(server, f"ALTER {scope} SET {name} TO off")
    try:
        assert f"may lose what it has accepted ({name} off); set it to on" in refusal(url, NotConfigured)
        # Unless that may be; and then nothing else is promised
        with closing(backends.open(f"{url}?durable=false")) as store:
            assert "may cost" in store.promise
            assert store.enqueue_many([new()])[0].outcome == "created"
    finally:
        settings(server, f"ALTER {scope} RESET {name}")
    with closing(backends.open(url)) as store:
        assert "a crash of GoTask or PostgreSQL and loss of power" in store.promise


def test_a_server_that_becomes_lax_is_noticed_by_the_next_connection(server: Postgres) -> None:
    with closing(backends.open(f"postgres://app:app@{server.address}/lax")) as store:
        store.counts()
        settings(server, "ALTER ROLE app SET synchronous_commit TO off")
        try:
            server.command("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
            until(lambda: "may lose" in refusal_of(store), "it is refused")
        finally:
            settings(server, "ALTER ROLE app RESET synchronous_commit")
        assert "may lose" not in refusal_of(store)


def refusal_of(store: backends.Backend) -> str:
    try:
        store.counts()
    except GotaskError as error:
        return str(error)
    return ""


def test_the_options_of_the_environment_hold_beside_ours(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c gotask.mine=there -c statement_timeout=7h")
    with closing(postgres.open(f"{server.url}?schema=environment&timeout=3")) as store:
        asked = "SELECT current_setting('gotask.mine', true), current_setting('statement_timeout')"
        assert store._server.transact(lambda txn: txn.ask((asked,), last=True)[0]) == [("there", "3s")]


def test_what_the_url_makes_of_it_counts_too(server: Postgres) -> None:
    said = refusal(f"{server.url}?options=-c%20synchronous_commit%3Doff", NotConfigured)
    assert "may lose what it has accepted (synchronous_commit off)" in said


def test_a_lease_that_the_clock_is_behind_is_not_given_again_after_a_crash(start_postgres: StartPostgres) -> None:
    # Given a job whose last lease is of a time to which the clock has not come yet, and nothing that goes to the disk unasked
    server = start_postgres(wal_writer_delay="10s", autovacuum="off", bgwriter_lru_maxpages=0)
    with closing(postgres.open(server.url)) as store:
        store.enqueue_many([new(id="j")])
        server.command("UPDATE gotask.jobs SET lease = extract(epoch FROM now() + interval '1 hour') * 1000000")
        (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
        # When the server is lost right after it was leased again
        server.kill()
        server.start()
        # Then it is still leased, or will be under another number
        again = store.lease({"default": 1}, "node-2", LEASE_S)
        assert job.lease not in [one.lease for one in again]
        assert store.settle_many([Settlement("j", job.lease, Event.ACK)]) == [not again]


# a limit on every wait


@pytest.fixture(params=["direct", "pooled"])
def url(server: Postgres, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store with a short time-out and one connection; its database has defaults that nobody would want."""
    wild = ("statement_timeout TO 0", "lock_timeout TO 0", "idle_in_transaction_session_timeout TO 0",
            "default_transaction_isolation TO serializable", "default_transaction_read_only TO on")  # fmt: skip
    with closing(postgres.open(f"{server.url}?schema={request.param}")) as store:
        store.counts()  # makes the tables, which may take longer
    for setting in wild:
        server.command(f"ALTER DATABASE postgres SET {setting}")
    with ExitStack() as started:
        door = server.url
        if request.param == "pooled":
            door = started.enter_context(PgBouncer(tmp_path / "bouncer", server)).url
        yield f"{door}?schema={request.param}&timeout={TIMEOUT_S}&connections=1&notify=off"
    server.command("ALTER DATABASE postgres RESET ALL", url=f"{server.url.removesuffix('postgres')}lax")
    server.command(f"DROP SCHEMA {request.param} CASCADE")


@pytest.fixture
def store(url: str) -> Iterator[postgres.Postgres]:
    with closing(postgres.open(url)) as made:
        made.counts()
        yield made


@contextmanager
def held(server: Postgres, statement: str, *values: object) -> Iterator[None]:
    """A lock of somebody else's, for as long as it is wanted."""
    with psycopg.connect(server.url, autocommit=True) as link:
        link.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        link.execute(statement.encode(), values or None)
        yield
        link.rollback()


@contextmanager
def timed() -> Iterator[None]:
    """As long as a call may take."""
    begun = time.monotonic()
    yield
    assert TIMEOUT_S * 0.8 < time.monotonic() - begun < LATE_S


def in_time(call: Callable[[], object], says: str = r"did not answer within 0\.5 s; the outcome is unknown") -> None:
    with timed(), pytest.raises(BackendDown, match=says):
        call()


def test_defaults_of_the_database_change_nothing(store: postgres.Postgres) -> None:
    store.enqueue_many([new(id="j")])
    (job,) = store.lease({"default": 1}, "n", LEASE_S)
    assert store.settle_many([Settlement("j", job.lease, Event.BURY)]) == [True]
    assert store.move_many(["j"], Event.REVIVE) == [True]
    assert store.counts() == {("default", State.PENDING): 1}


def test_a_lock_that_others_hold_is_waited_for_as_long_as_a_call_may_take(server: Postgres, store: postgres.Postgres) -> None:
    # Given jobs of which one runs, and somebody who has locked both and does not end
    store.enqueue_many([new(id="a"), new(id="b")])
    (job,) = store.lease({"default": 1}, "n", LEASE_S)
    table = f"{store._server.address.schema}.jobs"
    with held(server, f"SELECT FROM {table} FOR UPDATE"):
        # Then every call that has to wait for it ends in time
        in_time(lambda: store.move_many(["b"], Event.CANCEL), "did not let go of 'b'")
        in_time(lambda: store.drop_many(["b"]), "did not let go of 'b'")
        for end in (Settlement("a", job.lease, Event.ACK), Settlement("a", job.lease, Event.RETRY, due_in=1.0)):
            with timed():
                assert store.settle_many([end]) == [None]
        # And one that need not, goes on
        assert store.get_many(["a"])[0] is not None
        assert store.extend_many([Beat("a", job.lease)], LEASE_S)
    with held(server, f"LOCK TABLE {table}"):
        in_time(lambda: store.enqueue_many([new()]))
        in_time(lambda: store.get_many(["a"]))
        in_time(lambda: store.settle_many([Settlement("a", job.lease, Event.ACK)]))
        in_time(store.tick)
        # Nobody of ours is left there to wait
        asked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: server.command(asked) == [(0,)], "none waits")
    assert store.settle_many([Settlement("a", job.lease, Event.ACK)]) == [True]


def test_a_statement_is_ended_by_the_server_too(server: Postgres, store: postgres.Postgres) -> None:
    in_time(lambda: store._server.transact(lambda txn: txn.ask(("SELECT pg_sleep(30)",), last=True)))
    in_time(lambda: store._server.transact(lambda txn: [txn.ask(("SELECT 1",)), txn.ask(("SELECT pg_sleep(30)",), last=True)]))
    asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(30)%%' AND state = 'active' AND pid <> %s"
    until(lambda: server.command(asked, 0) in ([(0,)], [(1,)]), "nothing sleeps", 2.0)
    assert store.counts() == {}


def test_a_client_that_stops_within_a_transaction_is_ended_by_the_server(server: Postgres, store: postgres.Postgres) -> None:
    store.enqueue_many([new(id="j")])
    stuck = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"

    def stops(txn: postgres.server.Txn) -> None:
        # Given one of ours that has locked a job, and stops
        txn.ask((f"SELECT FROM {store._server.address.schema}.jobs WHERE id = 'j' FOR UPDATE",))
        assert server.command(stuck) == [(1,)]
        # Then the server lets go of the lock before long
        until(lambda: server.command(stuck) == [(0,)], "the server has ended it", 2.0)
        txn.ask(("SELECT 1",), last=True)

    with pytest.raises(BackendDown):
        store._server.transact(stops)
    assert store.move_many(["j"], Event.CANCEL) == [True]


def processes(server: Postgres) -> list[int]:
    """The server's own, and those that it has for its clients."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [server.pid, *map(int, children)]


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    pids = processes(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_is_frozen_is_given_up_in_time(server: Postgres, store: postgres.Postgres) -> None:
    store.enqueue_many([new(id="j")])
    with frozen(server):
        # On a connection that there is, and then on one that has to be made, which may take two seconds
        in_time(store.counts)
        begun = time.monotonic()
        with pytest.raises(BackendDown):
            store.enqueue_many([new(id="k")])
        assert time.monotonic() - begun < 2.0 + LATE_S
    until(lambda: _works(store), "it works again")
    assert store.get_many(["j"])[0] is not None


def _works(store: postgres.Postgres) -> bool:
    try:
        store.counts()
    except BackendDown:
        return False
    return True


def test_a_pooler_before_a_frozen_server_is_given_up_in_time(server: Postgres, tmp_path: Path) -> None:
    # Given a pooler that takes no notice of the limits a session begins with, as some do, and lets clients in by itself
    with PgBouncer(tmp_path / "bouncer", server, ignore_startup_parameters="options") as bouncer:
        with closing(postgres.open(f"{bouncer.url}?schema=deaf")) as store:
            store.counts()
        url = f"{bouncer.url}?schema=deaf&timeout={TIMEOUT_S}&notify=off"
        with frozen(server), closing(postgres.open(url)) as store:
            late: list[float] = []

            def ask() -> None:
                begun = time.monotonic()
                with pytest.raises(BackendDown):
                    store.counts()
                late.append(time.monotonic() - begun)

            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(2.0 + LATE_S)
            assert late


# connections


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_all_connections_are_made_anew_after_a_restart(start_postgres: StartPostgres, how: str) -> None:
    # Given a store whose threads have connections of their own
    server = start_postgres()
    with closing(postgres.open(server.url)) as store:
        store.enqueue_many([new(id="j")])
        ready, failed = threading.Barrier(5), []

        def use() -> None:
            try:
                store._server.transact(lambda txn: (txn.ask(("SELECT 1",)), ready.wait(10), txn.ask(("SELECT 1",), last=True)))
                ready.wait(30)  # the server has been restarted
                ready.wait(30)
                for _ in range(5):
                    assert store.get_many(["j"])[0] is not None
            except BaseException as e:
                failed.append(e)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait(10)
        ready.wait(30)
        assert len(store._server.links._free) >= 4
        # When the server is restarted
        getattr(server, how)()
        server.start()
        ready.wait(30)
        for thread in threads:
            thread.join(30)
        # Then nobody notices
        assert failed == []


def test_a_store_that_is_shared_by_more_threads_than_connections(servers: Servers) -> None:
    url = f"{servers.postgres.url}?schema=crowded&connections=2"
    with closing(postgres.open(url)) as store:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda n=n: answers.append(store.enqueue_many([new(id=f"j{n}")])[0].outcome))
                   for n in range(20)]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers == ["created"] * 20
        assert len(store._server.links._free) <= 2
    servers.postgres.command("DROP SCHEMA crowded CASCADE")
