"""Load: a thread that enqueues at a steady pace, and after a failure tries again with the same ids, as the docs advise."""

import random
import threading
import time
from typing import Final, Self

import msgspec

from gotask import backends
from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import NewJob
from gotask.states import State
from tests.chaos.scale import HEAL_S
from tests.crash.harness import fetch, until

BATCH: Final = 5  #: jobs in one enqueue
LAST_S: Final = 30.0  #: seconds that the last batch may take to be accepted once the load is to stop
TOP: Final = 9  #: the highest priority: a fresh job measures whether workers work, not how much lies before it


def work(id: str, n: int, ms: float, priority: int = 1, queue: str = "default") -> NewJob:
    body = msgspec.json.encode({"n": n, "ms": ms})
    return NewJob(type="work", id=id, payload=msgspec.Raw(body), priority=priority, queue=queue)


class Producer:
    """Enqueues `per_s` jobs a second, of up to `ms` milliseconds each, from `with` to its end.

    `numbers` is what was accepted (id -> number), `accepted_at` when. `failures` counts calls that raised BackendDown, and
    `found` the jobs that such a call had made all the same.
    """

    def __init__(self, url: str, per_s: float = 100.0, ms: float = 5.0, name: str = "load", seed: int = 0) -> None:
        self.numbers: dict[str, int] = {}
        self.accepted_at: dict[str, float] = {}
        self.failures = self.found = 0
        self.slowest = 0.0
        self._store = backends.open(url)
        self._pause, self._ms, self._name = BATCH / per_s, ms, name
        self._dice = random.Random(seed)
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def _run(self) -> None:
        try:
            while not self._ending.wait(self._pause):
                first = len(self.numbers)
                self._accepted([(f"{self._name}-{n}", n) for n in range(first, first + BATCH)])
        except BaseException as error:
            self._error = error
        finally:
            self._store.close()

    def _accepted(self, names: list[tuple[str, int]]) -> None:
        batch = [work(id, n, self._dice.choice([0.0, 0.0, self._ms])) for id, n in names]
        give_up_at = None
        while True:
            begun = time.monotonic()
            try:
                answers = self._store.enqueue_many(batch)
                break
            except BackendDown as error:
                self.failures += 1
                if self._ending.is_set():
                    give_up_at = give_up_at or time.monotonic() + LAST_S
                    assert time.monotonic() < give_up_at, f"the last batch was never accepted: {error}"  # noqa: PT017 - this is no test of the error
                time.sleep(0.05)
            finally:
                self.slowest = max(self.slowest, time.monotonic() - begun)
        assert {one.outcome for one in answers} <= {"created", "duplicate"}, answers
        self.found += sum(one.outcome == "duplicate" for one in answers)
        self.numbers.update(names)
        self.accepted_at.update({id: time.monotonic() for id, _ in names})

    def stop(self) -> None:
        """End once the batch under way is accepted. Raises what went wrong."""
        self._ending.set()
        self._thread.join(2 * LAST_S)
        assert not self._thread.is_alive(), "the producer hangs in a call of the store"
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def fresh(store: Backend, numbers: dict[str, int], most: float = HEAL_S) -> float:
    """Enqueue a job at the server itself, and see it end within `most` seconds; after how many it has. Adds it to `numbers`."""
    n = len(numbers)
    id = f"fresh-{time.monotonic_ns()}"
    begun = time.monotonic()
    store.enqueue_many([work(id, n, 0.0, TOP)])
    numbers[id] = n
    until(f"{id} has ended", lambda: fetch(store, [id])[id].status is State.SUCCESS, most)
    return time.monotonic() - begun
