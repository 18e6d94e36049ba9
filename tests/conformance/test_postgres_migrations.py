"""The steps that make the tables: as `up`, as SQL for psql, by two at once, and between versions that share a store."""

import difflib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

import psycopg
import pytest
from emptied import empty
from lab import LEASE_S, Clock, new, refusal, works

from gotask.backends import postgres
from gotask.backends.postgres import migrations, upkeep
from gotask.cli import gotask
from gotask.errors import NotConfigured
from gotask.model import Filter, Queue, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres, program

#: names that have to be quoted, each in a way of its own
ODD: Final = ("Jobs", "a.b", "a-b:c", "0", "select", "_", "Ab.9-" * 9)
#: steps of a version to come. One adds a column and a function beside the old one; one waits until none needs the old
PRE: Final = """
ALTER TABLE jobs ADD COLUMN tenant text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE history ADD COLUMN tenant text COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX jobs_tenant ON jobs (tenant) WHERE tenant <> '';
CREATE FUNCTION fold_9(at timestamptz) RETURNS bigint LANGUAGE sql SET search_path FROM CURRENT AS 'SELECT fold_1(at)';
"""
POST: Final = "DROP FUNCTION fold_1; CREATE FUNCTION only_now_1() RETURNS int LANGUAGE sql AS 'SELECT 1';"


@pytest.fixture
def server(servers: Servers) -> Iterator[Postgres]:
    yield servers.postgres
    ours = servers.postgres.command("SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' AND nspname <> 'public'")
    for (schema,) in ours:
        if schema in ODD or schema.startswith("m-"):
            servers.postgres.command(f'DROP SCHEMA "{schema}" CASCADE')


def url(server: Postgres, schema: str) -> str:
    return f"{server.url}?schema={schema}"


def psql(server: Postgres, script: str) -> str:
    """What psql says to a script; it must not complain."""
    words = [program("psql"), "-X", "-v", "ON_ERROR_STOP=1", "-q", server.url.replace("postgres://", "postgresql://")]
    done = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def dump(server: Postgres, schema: str) -> str:
    """All that there is in a schema, in SQL that calls it `s`."""
    words = [program("pg_dump"), "--no-owner", "--restrict-key=k", "-n", f'"{schema}"', server.url]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        done = subprocess.run([*words[:2], *words[3:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (line for line in done.stdout.splitlines() if "\t20" not in line)  # when a step was applied
    return "\n".join(lines).replace(schema, "s")


# as a user sees it


def test_what_the_commands_say(server: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    def say(*words: str) -> list[str]:
        assert gotask.main(["migrate", *words, f"-storage={url(server, 'm-made')}"]) == 0
        return capsys.readouterr().out.splitlines()

    steps = list(migrations.steps())
    # Given no store, then each step is to do; once it is made, none is
    assert [line.split() for line in say("status")] == [["step", "state"], *([name, "to", "do"] for name in steps)]
    script = say("sql")
    assert (script[0], script[-1]) == ("BEGIN;", "COMMIT;")
    shown = url(server, "m-made").replace(":pw@", ":***@")
    assert say() == [f"The schema of {shown} was brought up to date: {', '.join(steps)}."]
    assert say("up") == [f"The schema of {shown} is up to date."]
    assert [line.split() for line in say("status")][1:] == [[name, "applied"] for name in steps]
    assert say("sql") == say("sql", "--post") == []


@pytest.mark.parametrize("schema", ODD)
def test_a_schema_of_any_name(server: Postgres, schema: str) -> None:
    # Given a store made by its first user, and one made by psql of the same name
    works(url(server, schema))
    with closing(postgres.open(url(server, schema))) as store:
        store.enqueue_many([new(id="j")])
        (job,) = store.lease({"default": 1}, "n", LEASE_S)
        watch = store.watch(["job:j"])
        store.settle_many([Settlement("j", job.lease, Event.ACK)])
        assert watch.wait(10.0) == {"job:j"}
        watch.close()
        store.tick()
        assert [one.id for one in store.find(Filter()).jobs] == ["j"]
    server.command(f'DROP SCHEMA "{schema}" CASCADE')
    psql(server, upkeep.script(url(server, schema), post=True))
    works(url(server, schema))


def test_a_store_that_a_test_has_left_is_emptied_to_what_a_new_one_is(server: Postgres) -> None:
    # Given a store that was used over many days, and one that nobody has used
    clock = Clock()
    upkeep.up(url(server, "m-new"), post=True)
    with closing(postgres.open(url(server, "m-used"), clock)) as store:
        for _ in range(2):
            clock.now += 20_000_000
            store.put(Queue(name="default", rate_limit=100.0))
            store.enqueue_many([new(id="a", unique_key="k"), new(id="b"), new(id="c", delay=5.0)])
            for job in store.lease({"default": 1}, "n", LEASE_S):
                store.settle_many([Settlement(job.id, job.lease, Event.ACK)])
            store.tick()
    assert dump(server, "m-used") != dump(server, "m-new")
    # When it is emptied, then both are the same, whatever they are made of
    with psycopg.connect(server.url) as link:
        empty(link, "m-used")
    assert dump(server, "m-used") == dump(server, "m-new")


def test_a_printed_script_makes_what_up_makes(server: Postgres) -> None:
    upkeep.up(url(server, "m-made"), post=True)
    assert psql(server, upkeep.script(url(server, "m-printed"), post=True)) == ""
    made, printed = dump(server, "m-made"), dump(server, "m-printed")
    assert len(made) > 5000
    assert made == printed, "\n".join(difflib.unified_diff(made.splitlines(), printed.splitlines(), n=0))
    # And it does not run twice, nor leave half of itself
    with pytest.raises(AssertionError, match="already exists"):
        psql(server, migrations.text_of("m-printed", list(migrations.steps())))
    assert dump(server, "m-printed") == printed


def test_a_user_that_may_not_is_told_the_script(server: Postgres) -> None:
    assert refusal(f"{url(server, 'm-none')}&migrate=false", NotConfigured) == (
        f"The schema m-none at postgres://postgres:***@{server.address}/postgres is not there: run gotask migrate up."
    )
    assert upkeep.status(url(server, "m-none")) == dict.fromkeys(migrations.steps(), False)


# two at once


def test_two_that_start_first_make_it_once(server: Postgres) -> None:
    for round in range(4):
        at, failed = url(server, f"m-race{round}"), []
        ready = threading.Barrier(4)

        def start(made: Callable[[], object], ready: threading.Barrier = ready, failed: list[BaseException] = failed) -> None:
            try:
                ready.wait(30)
                made()
            except BaseException as e:
                failed.append(e)

        def node(n: int, at: str = at) -> None:
            with closing(postgres.open(at)) as store:
                assert store.enqueue_many([new(id=f"j{n}")])[0].outcome == "created"

        calls: list[Callable[[], object]] = [lambda n=n: node(n) for n in range(3)]  # type: ignore[misc]
        threads = [threading.Thread(target=start, args=(call,)) for call in [*calls, lambda at=at: upkeep.up(at, True)]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        with closing(postgres.open(at)) as store:
            assert store.counts() == {("default", State.PENDING): 3}


# versions


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, this is a version with two steps more."""
    known = dict(migrations.steps())
    number = len(known) + 1

    def come() -> None:
        more = {f"{number:03d}-pre-tenants": PRE, f"{number + 1:03d}-post-tenants": POST}
        monkeypatch.setattr(migrations, "steps", lambda: {**known, **more})

    return come


def test_an_old_node_goes_on_through_a_step_before_it_leaves(server: Postgres, later: Callable[[], None]) -> None:
    # Given an old node at work on a store
    at = url(server, "m-old")
    with closing(postgres.open(at)) as old:
        old.enqueue_many([new(id=f"j{n}") for n in range(6)])
        jobs = old.lease({"default": 4}, "old", LEASE_S)
        # When a new version comes
        later()
        pre, post = list(migrations.steps())[-2:]
        said = f"The schema m-old at postgres://postgres:***@{server.address}/postgres lacks {pre}: run gotask migrate up."
        assert refusal(at, NotConfigured) == said
        assert upkeep.up(at, post=False) == [pre]
        assert upkeep.status(at)[post] is False
        assert upkeep.script(at, post=False) == ""
        assert f"-- {post}" in upkeep.script(at, post=True)
        # Then both work side by side, on each other's jobs
        with closing(postgres.open(at)) as young:
            assert old.settle_many([Settlement(jobs[0].id, jobs[0].lease, Event.ACK)]) == [True]
            assert young.settle_many([Settlement(jobs[1].id, jobs[1].lease, Event.BURY)]) == [True]
            assert old.settle_many([Settlement(jobs[2].id, jobs[2].lease, Event.RETRY, due_in=0.0)]) == [True]
            assert old.move_many([jobs[1].id], Event.REVIVE) == [True]
            assert old.enqueue_many([new(id="new")])[0].outcome == "created"
            assert len(young.lease({"default": 10}, "young", LEASE_S)) >= 3
            assert young.move_many([jobs[3].id], Event.CANCEL) == [True]
            old.tick()
            assert {job.id for job in old.find(Filter()).jobs} == {job.id for job in young.find(Filter()).jobs}
    # And once the old one is gone, the rest is done
    assert upkeep.up(at, post=True) == [post]
    assert upkeep.up(at, post=True) == []


def test_a_step_that_fails_leaves_nothing(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    at, known = url(server, "m-failing"), dict(migrations.steps())
    upkeep.up(at, post=True)
    before = dump(server, "m-failing")
    monkeypatch.setattr(migrations, "steps", lambda: {**known, "998-pre-a": PRE, "999-pre-b": "CREATE TABLE jobs ()"})
    with pytest.raises(Exception, match='relation "jobs" already exists'):
        upkeep.up(at, post=True)
    assert dump(server, "m-failing") == before


def test_an_older_version_opens_a_store_that_has_had_later_steps(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    at, known = url(server, "m-back"), dict(migrations.steps())
    with monkeypatch.context() as later:
        later.setattr(migrations, "steps", lambda: {**known, "999-pre-tenants": PRE})
        upkeep.up(at, post=False)
    works(at)
    assert upkeep.up(at, post=True) == []
