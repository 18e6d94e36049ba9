"""What `gotask migrate` does to a PostgreSQL storage. Each raises BackendDown or NotConfigured with the reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from gotask.backends.postgres import migrations
from gotask.backends.postgres.address import Address, parse
from gotask.backends.postgres.link import Link, connect
from gotask.backends.postgres.server import Server


@contextmanager
def _connected(url: str) -> Iterator[tuple[Link, Address]]:
    server = Server(parse(url))
    with server.told():
        link = connect(server.address)
        try:
            link.deadline = inf  # a step may take as long as it takes
            yield link, server.address
        finally:
            link.close()


def status(url: str) -> dict[str, bool]:
    """Every step that this version knows, and whether the store has had it."""
    with _connected(url) as (link, address):
        have = migrations.applied(link, address.schema)
    return {name: name in have for name in migrations.steps()}


def up(url: str, post: bool) -> list[str]:
    """Run the steps that the store lacks; `post` ones too if asked to. Their names."""
    with _connected(url) as (link, address):
        return migrations.up(link, address.schema, post)


def script(url: str, post: bool) -> str:
    """What `up` would do, for psql; empty if there is nothing to do."""
    with _connected(url) as (link, address):
        have = migrations.applied(link, address.schema)
        lacks = [name for name in migrations.steps() if name not in have and (post or "-pre-" in name)]
        return migrations.text_of(address.schema, lacks) if lacks else ""
