"""The same operations by two doors, the service itself and a server over HTTP, on each embedded storage."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from served import Server

from gotask import backends, client
from gotask.backends import Backend
from gotask.model import Job, NewJob, Settlement
from gotask.service import Service
from gotask.states import Event


class House(NamedTuple):
    """A door, and the store behind it, where a test plays the node."""

    door: Service
    store: Backend

    def leased(self, queue: str) -> Job:
        (job,) = self.store.lease({queue: 1}, "node-1", 30.0)
        return job

    def settle(self, job: Job, event: Event, **fields: object) -> None:
        assert self.store.settle_many([Settlement(job.id, job.lease, event, **fields)]) == [True]  # type: ignore[arg-type]

    def queue_with(self, *ids: str) -> str:
        """A queue of a new name with these jobs in it."""
        name = f"q-{uuid.uuid4().hex[:12]}"
        for id in ids:
            self.door.create_job(NewJob(type="echo", id=id, queue=name))
        return name


def storage_url(kind: str, folder: Path) -> str:
    return f"memory://t-{uuid.uuid4().hex}" if kind == "memory" else f"sqlite:///{folder}/jobs.db"


@pytest.fixture(scope="session", params=["local-sqlite", "local-memory", "http-sqlite", "http-memory"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    way, _, kind = request.param.partition("-")
    folder = tmp_path_factory.mktemp(request.param)
    url = storage_url(kind, folder)
    server = Server(folder, url).ready() if way == "http" else None
    store = backends.open(url)
    door = client.open(server.url) if server else Service(store)
    yield House(door, store)
    if server:
        door.close()
        assert server.stop() == 0, server.output
        assert "Traceback" not in server.output
    store.close()
    if kind == "memory":
        forget(url)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    served = Server(folder, storage_url("sqlite", folder)).ready()
    yield served
    assert served.stop() == 0, served.output
    assert "Traceback" not in served.output, served.output


def forget(url: str) -> None:
    """Remove a memory store's files, which outlive its processes by design."""
    from gotask.backends.sqlite.home import memory_home

    path = Path(memory_home(url).path)
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
