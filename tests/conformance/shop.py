"""Stores of several shards whose steps a test can stop between: what the tests of unique keys are made of."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from lab import Clock, new

from gotask.backends import redis
from gotask.backends.redis import claims
from gotask.model import Enqueued, Filter
from gotask.states import LIVE
from tests.servers.redis import Redis

WAIT_S: Final = 20.0  #: seconds after which a thread of a test is stuck
#: keys of all shards that have a part in deciding unique keys
LEFT: Final = "return #redis.call('KEYS', '*:claims') + #redis.call('KEYS', '*:claimed') + #redis.call('KEYS', '*:freed')"
#: unique keys that two jobs hold, at one instant
DOUBLE: Final = """
local seen, double = {}, {}
for _, set in ipairs(redis.call('KEYS', '*:unique')) do
  for _, key in ipairs(redis.call('HKEYS', set)) do
    if seen[key] then double[#double + 1] = key end
    seen[key] = true
  end
end
return double
"""


class Died(Exception):
    """The producer died here."""


class Shop:
    """Stores of four shards on one server, each as another process has it."""

    def __init__(self, server: Redis) -> None:
        self.server, self.clock = server, Clock()
        self.stores: list[redis.Redis] = []

    def store(self, clock: Callable[[], float] | None = None) -> redis.Redis:
        url = f"{self.server.url}?shards=4&timeout=1"
        self.stores.append(redis.open(url, clock or self.clock))
        return self.stores[-1]

    @property
    def under_way_s(self) -> float:
        return self.stores[0]._claims._under_way_s

    def pass_claims(self) -> None:
        """Time goes by, until no claim so far is good any more."""
        self.clock.now += self.under_way_s + claims.MARGIN_S + 0.001

    def left(self) -> int:
        found: int = self.server.command("EVAL", LEFT, 0)
        return found

    def live(self, key: str = "k") -> list[str]:
        return [job.id for job in self.stores[0].find(Filter(unique_key=key)).jobs if job.status in LIVE]


@contextmanager
def opened(server: Redis) -> Iterator[Shop]:
    made = Shop(server)
    of = made.store()._shards.of
    assert all(of(one) != of(other) for one, other in (("a", "b"), ("slow", "quick"), ("paused", "other")))
    yield made
    for store in made.stores:
        store.close()


def at_step(
    store: redis.Redis,
    verb: str,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
    nth: int = 1,
) -> None:
    """Do something before or after the nth call of `verb` that Claims makes in that store from now on."""
    run, calls = store._claims._run, 0

    def stepping(root: str, said: str, *arguments: Any) -> Any:
        nonlocal calls
        calls += said == verb
        here = said == verb and calls == nth
        if here:
            before()
        answer = run(root, said, *arguments)
        if here:
            after()
        return answer

    store._claims._run = stepping


def once_claimed(store: redis.Redis, then: Callable[[], object]) -> None:
    """Do something after the first claim that is made in that store from now on."""
    run, made = store._claims._run, []

    def claiming(root: str, said: str, *arguments: Any) -> Any:
        answer = run(root, said, *arguments)
        if said == "claim" and len(answer) == 1 and not made:
            made.append(said)
            then()
        return answer

    store._claims._run = claiming


def calls(store: redis.Redis, verb: str) -> list[str]:
    """The calls of a verb that Claims makes in that store from now on."""
    run, made = store._claims._run, []

    def counting(root: str, said: str, *arguments: Any) -> Any:
        made.extend([said] if said == verb else ())
        return run(root, said, *arguments)

    store._claims._run = counting
    return made


def enqueue(store: redis.Redis, id: str, key: str = "k") -> tuple[str, str]:
    """The outcome, and the id of the job that stands."""
    answer: Enqueued
    (answer,) = store.enqueue_many([new(id=id, unique_key=key)])
    return answer.outcome, answer.job.id


def die() -> None:
    raise Died


def claim_and_die(store: redis.Redis, id: str, key: str = "k") -> None:
    once_claimed(store, die)
    with pytest.raises(Died):
        enqueue(store, id, key)


class Beside(threading.Thread):
    """Something that is done beside the test, and what came of it."""

    def __init__(self, do: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._do = do
        self._found: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._found = self._do()
        except Exception as error:
            self._found = error

    def result(self) -> Any:
        self.join(WAIT_S)
        assert not self.is_alive(), "it is stuck"
        return self._found


class Halt:
    """A place at which a thread stands still until it may go on."""

    def __init__(self) -> None:
        self._reached, self._go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._go.wait(WAIT_S)

    def reached(self) -> None:
        assert self._reached.wait(WAIT_S)

    def go(self) -> None:
        self._go.set()
