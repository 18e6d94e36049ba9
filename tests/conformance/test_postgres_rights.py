"""Who may do what in PostgreSQL: an owner migrates, others work with few rights, read, or are kept out."""

from collections.abc import Iterator
from contextlib import closing

import least
import psycopg
import pytest
from lab import LEASE_S, Clock, new, refusal
from least import url_of

from gotask import backends
from gotask.backends import postgres
from gotask.backends.postgres import due, migrations, upkeep
from gotask.backends.postgres.rows import texts
from gotask.errors import BackendDown, NotConfigured
from gotask.model import Beat, Filter, Queue, Settlement
from gotask.states import DAY_S, Event, State
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres

REFUSED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture
def url(server: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store that the owner has made, and granted; as the superuser's URL."""
    made = f"{server.url}?schema=rights-{len(request.node.name)}"
    least.make.__wrapped__(made)
    yield made
    server.command(f'DROP SCHEMA "{schema(made)}" CASCADE')


def schema(url: str) -> str:
    return url.rpartition("schema=")[2]


def ask(url: str, statement: str, role: str = "app") -> list[tuple[object, ...]]:
    """One statement of a role that has the store's schema before it."""
    with psycopg.connect(url_of(role, url).partition("?")[0], autocommit=True) as link:
        link.execute(f'SET search_path TO "{schema(url)}"'.encode())
        cursor = link.execute(statement.encode())
        return cursor.fetchall() if cursor.description is not None else []


def test_who_may_not_make_the_tables_is_told_who_may(server: Postgres, url: str) -> None:
    absent = f"{server.url}?schema=absent"
    said = refusal(url_of("app", absent), NotConfigured)
    assert said.endswith("is not there, and this user may not make it: run gotask migrate up as one who may.")
    with pytest.raises(BackendDown, match=r"permission denied for database postgres\); look at the user and its rights"):
        upkeep.up(url_of("app", absent), post=True)
    assert upkeep.up(url_of("owner", url), post=True) == []


def test_an_owner_that_granted_nothing_is_said(server: Postgres) -> None:
    url = f"{server.url}?schema=ungranted"
    upkeep.up(url_of("owner", url), post=True)
    assert refusal(url_of("app", url)).endswith(
        "does not let us do this (permission denied for schema ungranted); look at the user and its rights."
    )
    ask(url, "GRANT USAGE ON SCHEMA ungranted TO app", "owner")
    assert "(permission denied for table migrations)" in refusal(url_of("app", url))
    server.command("DROP SCHEMA ungranted CASCADE")


def test_a_whole_life_over_many_days_needs_no_more(url: str) -> None:
    # Given a store that only the user with few rights works with
    clock = Clock()
    with closing(postgres.open(url_of("app", url), clock)) as store:
        store.put(Queue(name="few", max_workers=2, rate_limit=100.0))
        for day in range(10):
            # When on each of many days jobs go every way there is
            store.enqueue_many([new(id=f"{day}-{n}", unique_key=f"{day}-{n}") for n in range(8)])
            store.enqueue_many([new(id=f"{day}-few-{n}", queue="few") for n in range(3)])
            jobs = store.lease({"default": 8, "few": 3}, "node-1", LEASE_S)
            watch = store.watch([f"job:{jobs[0].id}"])
            store.extend_many([Beat(job.id, job.lease, 0.5, "half") for job in jobs], LEASE_S)
            ends = [Event.ACK, Event.RETRY, Event.SNOOZE, Event.RELEASE, Event.BURY]
            held = [Settlement(job.id, job.lease, end, due_in=2.0 if end is Event.RETRY else None)
                    for job, end in zip(jobs, ends, strict=False)]  # fmt: skip
            assert store.settle_many(held) == [True] * 5
            assert "job:" + jobs[0].id in watch.wait(10.0)
            watch.close()
            store.move_many([jobs[4].id], Event.REVIVE)
            store.move_many([jobs[5].id], Event.CANCEL)
            clock.now += DAY_S
            while store.tick().next_in == 0:
                pass
            store.drop_many([f"{day}-7"])
        store._server.call("fold", store._at())
        store._server.call("survey", 0.0, texts(["default", "few"]))
        # Then all of it was done, the days too: there is a table for each of those that come, and none of those that are over
        assert store.counts()["default", State.PENDING] > 0
        assert store.find(Filter(limit=100)).jobs
        assert store.promise
    named = [name for (name,) in ask(url, "SELECT relname FROM pg_class WHERE relname ~ '^history_2' AND relkind = 'r' "
                                          f"AND relnamespace = '\"{schema(url)}\"'::regnamespace ORDER BY 1")]  # fmt: skip
    assert len(named) >= len(due.KEEP_DAYS)
    owners = ask(url, f"SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = '{schema(url)}'")
    assert owners == [("owner",)]


def test_what_ends_goes_into_the_table_of_its_day(url: str) -> None:
    with closing(postgres.open(url_of("app", url))) as store:
        store.tick()
        store.enqueue_many([new(id="j")])
        (job,) = store.lease({"default": 1}, "n", LEASE_S)
        assert store.settle_many([Settlement("j", job.lease, Event.ACK)]) == [True]
    ((place,),) = ask(url, "SELECT tableoid::regclass::text FROM history")
    assert str(place).startswith("history_2")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE FUNCTION mine() RETURNS void LANGUAGE sql AS ''",
        "CREATE SCHEMA mine",
        "DROP TABLE waits",
        "DROP FUNCTION fold_1",
        "TRUNCATE jobs",
        "ALTER TABLE jobs ADD COLUMN mine text",
        "ALTER TABLE jobs DISABLE TRIGGER ALL",
        "ALTER FUNCTION tend_1 SET search_path TO mine",
        "ALTER SEQUENCE places RESTART",
        "CREATE INDEX ON jobs (type)",
        "CREATE OR REPLACE FUNCTION fold_1(at timestamptz) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
        "SET ROLE owner",
    ],
)  # fmt: skip
def test_what_is_not_needed_is_refused(url: str, statement: str) -> None:
    with pytest.raises(REFUSED):
        ask(url, statement)


def test_functions_run_as_whoever_calls_them_and_look_only_in_their_schema(url: str) -> None:
    asked = f"SELECT proname, prosecdef, proconfig FROM pg_proc WHERE pronamespace = '\"{schema(url)}\"'::regnamespace"
    functions = {str(name): (definer, config) for name, definer, config in ask(url, asked)}
    assert len(functions) >= 10
    for name, (definer, config) in functions.items():
        assert f'search_path="{schema(url)}", pg_temp' in config, name  # type: ignore[operator]
        assert definer is (name == "tend_1")
        assert "jit=off" in config or not any(setting.startswith("enable_") for setting in config), name  # type: ignore[attr-defined]


def test_the_owners_function_does_nothing_else(url: str) -> None:
    # Given a job that ended a moment ago, tables of days, and one whose name is like theirs
    with closing(postgres.open(url_of("app", url))) as store:
        store.tick()
        store.enqueue_many([new(id="j")])
        (job,) = store.lease({"default": 1}, "n", LEASE_S)
        store.settle_many([Settlement("j", job.lease, Event.ACK)])
    ask(url, "CREATE TABLE history_20000101 (due_at timestamptz)", "owner")
    # When the user calls it with what no node would say
    for keeps, at in (("'{}'", "'2199-01-01'"), ("'{NULL,1}'", "'2199-01-02'")):
        ask(url, f"SELECT tend_1({keeps}, {at})")
    for keeps in ("'{-500000,0}'", "'{1,500000}'", "ARRAY (SELECT generate_series(1, 600))"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            ask(url, f"SELECT tend_1({keeps}, NULL)")
    # Then what is remembered is still there, and so is what it did not make
    assert ask(url, "SELECT id FROM history") == [("j",)]
    assert ask(url, "SELECT to_regclass('history_20000101') IS NOT NULL") == [(True,)]


def test_a_stranger_is_kept_out(server: Postgres, url: str) -> None:
    server.command("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    try:
        for what in ("* FROM {}jobs", "{}tend_1('{{1}}', NULL)", "{}forget_1(1, NULL)"):
            with pytest.raises(psycopg.errors.Error, match=r"does not exist|permission denied"):
                ask(url, f"SELECT {what.format('')}", "stranger")
            named = what.format(f'"{schema(url)}".')
            with pytest.raises(REFUSED, match="permission denied for schema"):
                ask(url, f"SELECT {named}", "stranger")
        assert "does not let us do this (permission denied for schema" in refusal(url_of("stranger", url))
    finally:
        server.command("DROP ROLE stranger")


def test_who_may_only_read_can_look(server: Postgres, url: str) -> None:
    with closing(backends.open(url_of("app", url))) as store:
        store.enqueue_many([new(id="j")])
    server.command("CREATE ROLE reader LOGIN PASSWORD 'reader'")
    try:
        ask(url, f'GRANT USAGE ON SCHEMA "{schema(url)}" TO reader', "owner")
        ask(url, f'GRANT SELECT ON ALL TABLES IN SCHEMA "{schema(url)}" TO reader', "owner")
        with closing(backends.open(url_of("reader", url))) as store:
            assert store.counts() == {("default", State.PENDING): 1}
            assert [job.id for job in store.find(Filter()).jobs] == ["j"]
            assert store.get_many(["j"])[0] is not None
            with pytest.raises(BackendDown, match=r"does not let us do this \(permission denied for"):
                store.enqueue_many([new()])
            with pytest.raises(BackendDown, match=r"does not let us do this \(permission denied for"):
                store.drop_many(["j"])
        assert set(upkeep.status(url_of("reader", url))) == set(migrations.steps())
        server.command("DROP OWNED BY reader")
    finally:
        server.command("DROP ROLE reader")
