"""The adaptor between the suite and a storage: a fresh store, more connections to it, and a clock that the test moves."""

import os
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import emptied
import pytest
from msgspec import Raw

from gotask import backends
from gotask.backends import SCHEMES, Backend
from gotask.errors import BackendDown
from gotask.log import scrub
from gotask.model import Job, NewJob, Settlement
from gotask.states import Event, State

LEASE_S = 30.0
OWNER = "node-1"


def per_shard(reason: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test of what a store of several shards keeps in each of them only."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        for name in ("redis-shards", "redis-cluster"):
            test = pytest.mark.skip_backend(name, reason)(test)
        return test

    return mark


ordered = per_shard("order holds per shard")
counted_at_once = per_shard("the counts of several shards are not of one instant")


class Target(NamedTuple):
    """A storage under test. In its URL, {redis}, {cluster}, {postgres} ... are servers of this session."""

    name: str
    opener: str
    url: str

    @classmethod
    def of(cls, opener: str, url: str) -> "Target":
        if not url:
            raise pytest.UsageError(
                f"--backend={opener} needs --backend-url with the URL of a fresh store, such as x://{{name}}"
            )
        return cls(url.partition(":")[0], opener, url)


KNOWN = {
    "memory": Target("memory", SCHEMES["memory"], "memory://{name}"),
    "sqlite": Target("sqlite", SCHEMES["sqlite"], "sqlite:///{folder}/{name}.db"),
    "redis": Target("redis", SCHEMES["redis"], "{redis}?prefix={name}"),
    "redis-shards": Target("redis-shards", SCHEMES["redis"], "{redis}?prefix={name}&shards=4"),
    "redis-sentinel": Target("redis-sentinel", SCHEMES["redis+sentinel"], "{sentinels}?prefix={name}"),
    "postgres": Target("postgres", SCHEMES["postgres"], "{postgres}?schema={name}"),
    "postgres-bouncer": Target("postgres-bouncer", SCHEMES["postgres"], "{pgbouncer}?schema={name}"),
    "postgres-least": Target("postgres-least", "least:open", "{postgres}?schema={name}"),
    "redis-cluster": Target("redis-cluster", SCHEMES["redis+cluster"], "{cluster}?prefix={name}&shards=6"),
}


def opener(path: str) -> Callable[..., Backend]:
    module, _, function = path.partition(":")
    found: Callable[..., Backend] = getattr(import_module(module), function)
    return found


class Clock:
    """The store's time. It starts at a whole second and moves only when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Lab:
    """One store and the connections to it. A store that judges time by its server's clock must offer it for moving."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.clock = Clock()
        self._in_schema = emptied.PLACE in target.url
        self._name = (self._in_schema and emptied.spare(target.name)) or f"t-{uuid.uuid4().hex}"
        self.url = target.url.format(name=self._name, folder=folder)
        self._open: list[Backend] = []
        self.store = self.another()

    def another(self, moved: bool = True) -> Backend:
        """One more connection to the store, as another process would have; with `moved`, under this lab's clock."""
        call = opener(self.target.opener)
        made = call(self.url, clock=self.clock) if moved else call(self.url)
        self._open.append(made)
        return made

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds

    def at(self, seconds: float) -> datetime:
        """The instant so many seconds from now."""
        return datetime.fromtimestamp(self.clock.now + seconds, UTC)

    def job(self, id: str) -> Job:
        (found,) = self.store.get_many([id])
        assert found is not None, f"{id} is gone"
        return found

    def enqueue(self, *ids: str, **fields: object) -> list[Job]:
        answers = self.store.enqueue_many([new(id=id, **fields) for id in ids])
        return [answer.job for answer in answers]

    def lease(self, n: int = 1, queue: str = "default", owner: str = OWNER) -> list[Job]:
        return self.store.lease({queue: n}, owner, LEASE_S)

    def settle(self, job: Job, event: Event, **fields: object) -> bool:
        (held,) = self.store.settle_many([Settlement(job.id, job.lease, event, **fields)])  # type: ignore[arg-type]
        return held

    def running(self, id: str, **fields: object) -> Job:
        self.enqueue(id, **fields)
        (job,) = self.lease(queue=str(fields.get("queue", "default")))
        assert job.id == id
        return job

    def tick_all(self) -> None:
        while self.store.tick(100).next_in == 0:
            pass

    def in_state(self, state: State, id: str = "j") -> Job:
        """A job brought to `state` by the ordinary verbs."""
        if state is State.SCHEDULED:
            self.enqueue(id, delay=60.0)
        elif state is State.PENDING:
            self.enqueue(id)
        elif state is State.EXPIRED:
            self.enqueue(id, expires_at=self.at(10))
            self.advance(11)
            self.store.tick()
        elif state is State.CANCELLED:
            self.enqueue(id)
            assert self.store.move_many([id], Event.CANCEL) == [True]
        else:
            job = self.running(id)
            ends = {State.RETRYING: Event.RETRY, State.SUCCESS: Event.ACK, State.FAILED: Event.BURY}
            if state in ends:
                assert self.settle(job, ends[state], due_in=60.0)
        job = self.job(id)
        assert job.status is state
        return job

    def close(self) -> None:
        for store in self._open:
            store.close()
        if self._in_schema:
            emptied.keep(self.target.name, self.url, self._name)
        folder = Path("/dev/shm") / f"gotask-{os.geteuid()}"
        if self.target.name == "memory" and folder.is_dir():
            for path in folder.glob(f"{self._name}.*"):
                path.unlink()


def new(**fields: object) -> NewJob:
    made = {"type": "noop", "payload": Raw(b"{}"), **fields}
    return NewJob(**made)  # type: ignore[arg-type]


def works(url: str) -> None:
    """A job goes in and is seen from a second connection."""
    with closing(backends.open(url)) as one, closing(backends.open(url)) as other:
        assert one.enqueue_many([new(id="j")])[0].outcome == "created"
        assert other.counts() == {("default", State.PENDING): 1}
        assert other.promise.startswith("Once enqueue has answered, a job survives")
        assert one.drop_many(["j"]) == [True]


def refusal(url: str, kind: type[Exception] = BackendDown) -> str:
    """What the first call of a store that cannot be used says, within its deadline and with no password in it."""
    begun = monotonic()
    with pytest.raises(kind) as caught, closing(backends.open(url)) as store:
        store.counts()
    assert monotonic() - begun < 6.0
    assert str(caught.value) == scrub(str(caught.value))
    return str(caught.value)


def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Look again and again; fail loudly after `seconds`."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"after {seconds:g} s still not: {what}"
