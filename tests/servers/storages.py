"""The storages on which whole nodes are tried and measured: a fresh one of each kind, as a URL and open."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gotask import backends
from gotask.backends import Backend
from tests.servers.fixtures import Servers

KINDS = ["memory", "sqlite", "redis", "postgres"]


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh storage of each kind, as a URL."""
    name = f"test-{uuid4().hex[:8]}"
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
    elif request.param == "redis":
        # only now, so that without Redis the other kinds are tried
        servers: Servers = request.getfixturevalue("servers")
        yield f"{servers.redis.url}?prefix={name}"
        servers.redis.forget(name)
    elif request.param == "postgres":
        servers = request.getfixturevalue("servers")
        yield f"{servers.postgres.url}?schema={name}"
        servers.postgres.command(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
    else:
        yield f"memory://{name}"
        for path in Path(f"/dev/shm/gotask-{os.getuid()}").glob(f"{name}*"):
            path.unlink()


@pytest.fixture
def backend(storage: str) -> Iterator[Backend]:
    opened = backends.open(storage)
    yield opened
    opened.close()
