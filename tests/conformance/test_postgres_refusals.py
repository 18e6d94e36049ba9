"""What the PostgreSQL storage refuses, or cannot reach: one sentence, in time."""

from contextlib import closing

import pytest
from lab import refusal

from gotask import backends
from gotask.errors import NotConfigured
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres
from tests.servers.processes import free_ports


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


def test_a_server_that_is_not_there(server: Postgres) -> None:
    (port,) = free_ports(1)
    said = refusal(f"postgres://u@127.0.0.1:{port}/d")
    assert said.startswith(f"PostgreSQL at postgres://u@127.0.0.1:{port}/d cannot be reached (")
    assert said.endswith("); look whether it runs, and at its address.")
    assert "does not let us in" in refusal(server.url.replace(":pw@", ":wrong@"))
    assert "has no such database" in refusal(f"{server.url}/nothere".replace("postgres/nothere", "nothere"), NotConfigured)


def test_the_promise(server: Postgres) -> None:
    with closing(backends.open(f"{server.url}?schema=promised")) as store:
        survives = "Once enqueue has answered, a job survives a crash of GoTask or PostgreSQL and loss of power"
        assert store.promise == f"{survives} (synchronous_commit on)."
