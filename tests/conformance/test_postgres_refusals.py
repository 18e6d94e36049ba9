"""What the PostgreSQL storage refuses, or cannot reach: one sentence, in time; URLs, rights and steps."""

from contextlib import closing

import pytest
from lab import refusal

from gotask import backends
from gotask.backends.postgres import migrations, upkeep
from gotask.errors import NotConfigured
from tests.servers.fixtures import Servers, StartPostgres
from tests.servers.postgres import Postgres
from tests.servers.processes import free_ports


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


# servers and rights


def test_a_server_that_is_not_there(server: Postgres) -> None:
    (port,) = free_ports(1)
    said = refusal(f"postgres://u@127.0.0.1:{port}/d")
    assert said.startswith(f"PostgreSQL at postgres://u@127.0.0.1:{port}/d cannot be reached (")
    assert said.endswith("); look whether it runs, and at its address.")
    assert "does not let us in" in refusal(server.url.replace(":pw@", ":wrong@"))
    assert "has no such database" in refusal(f"{server.url}/nothere".replace("postgres/nothere", "nothere"), NotConfigured)


def test_a_frozen_server_is_given_up_in_time(start_postgres: StartPostgres) -> None:
    server = start_postgres()
    with closing(backends.open(f"{server.url}?timeout=0.5")) as store:
        store.counts()
    server.suspend()
    assert "cannot be reached" in refusal(f"{server.url}?timeout=0.5")
    server.resume()


@pytest.mark.parametrize(
    ("settings", "lax"), [({"fsync": "off"}, "fsync off"), ({"synchronous_commit": "off"}, "synchronous_commit off")]
)
def test_a_server_that_may_lose_jobs(start_postgres: StartPostgres, settings: dict[str, str], lax: str) -> None:
    server = start_postgres(**settings)
    assert f"may lose what it has accepted ({lax})" in refusal(server.url, NotConfigured)
    with closing(backends.open(f"{server.url}?durable=false")) as store:
        assert "may cost" in store.promise


def test_the_promise(server: Postgres) -> None:
    with closing(backends.open(f"{server.url}?schema=promised")) as store:
        survives = "Once enqueue has answered, a job survives a crash of GoTask or PostgreSQL and loss of power"
        assert store.promise == f"{survives} (synchronous_commit on)."


def test_a_store_that_lacks_a_step_is_not_touched(server: Postgres) -> None:
    url = f"{server.url}?schema=lacking"
    assert upkeep.status(url) == dict.fromkeys(migrations.steps(), False)
    upkeep.up(url, post=True)
    last = list(migrations.steps())[-1]
    server.command("DELETE FROM lacking.migrations WHERE name = %s", last)
    assert f"lacks {last}: run gotask migrate up." in refusal(url, NotConfigured)
    server.command("DROP SCHEMA lacking CASCADE")


def test_the_printed_steps_do_what_migrate_does(server: Postgres) -> None:
    url = f"{server.url}?schema=printed"
    for statement in [upkeep.script(url, post=True)]:
        server.command(statement)
    assert set(upkeep.status(url).values()) == {True}
    assert upkeep.script(url, post=True) == ""
    assert "is not there: run gotask migrate up" in refusal(f"{server.url}?schema=nowhere&migrate=false", NotConfigured)
