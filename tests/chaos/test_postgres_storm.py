"""All that a PostgreSQL store can be asked, at once and of the same jobs: no call fails, and none waits in a circle."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from gotask.backends import postgres
from gotask.model import Beat, Filter, Job, NewJob, Queue, Settlement, Worker
from gotask.states import FINISHED, Event
from tests.chaos.scale import so_long
from tests.chaos.witness import agreed, shown
from tests.crash.harness import until
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres

pytestmark = pytest.mark.timeout(1800)
STORM_S = so_long(8.0, 300.0)
IDS = 400  #: few enough that all meet at the same ones again and again
BATCH = 40
QUEUES = ("one", "two", "three")
LEASE_S = 0.2  #: so short that some lapse
KEEP_S = 0.5  #: so short that what has ended is forgotten, and its id free again
STORES = 3
KEYS = 200  #: unique keys, of a few of the jobs
NOTICED_S = 10.0  #: seconds; a server looks for circles after one
#: how often each is done at once
CREW = {"enqueue": 3, "work": 3, "beat": 1, "tick": 2, "cancel": 1, "drop": 1, "revive": 1, "look": 1, "govern": 1}
DEADLOCK = "deadlock detected"
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


class Storm:
    """What each thread does over and over, with jobs that all of them know."""

    def __init__(self, keys: int) -> None:
        self._keys = keys
        self.calls: Counter[str] = Counter()
        self.given: list[tuple[str, int]] = []
        self.acked: list[tuple[str, int]] = []
        self.failed: list[BaseException] = []
        self.over = threading.Event()
        self._held: dict[str, Job] = {}
        self._guard = threading.Lock()

    def run(self, store: postgres.Postgres, role: str, seed: int) -> None:
        dice, act = random.Random(seed), getattr(self, role)
        try:
            while not self.over.is_set():
                act(store, dice)
                self.calls[role] += 1
        except BaseException as error:
            self.failed.append(error)
            self.over.set()

    def some(self, dice: random.Random) -> list[str]:
        return [f"j{n}" for n in dice.sample(range(IDS), BATCH)]

    def held(self, dice: random.Random) -> list[Job]:
        with self._guard:
            known = list(self._held.values())
        return dice.sample(known, min(len(known), BATCH))

    def enqueue(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.enqueue_many([odd(id, dice, self._keys) for id in self.some(dice)])

    def work(self, store: postgres.Postgres, dice: random.Random) -> None:
        """Lease, end some of that and some that others hold, and keep the rest for them."""
        jobs = store.lease({queue: dice.randrange(BATCH) for queue in dice.sample(QUEUES, 3)}, "node", LEASE_S)
        with self._guard:
            self.given += [(job.id, job.lease) for job in jobs]
            self._held.update((job.id, job) for job in jobs)
        ends = [ending(job, dice) for job in self.held(dice)]
        for end, was in zip(ends, store.settle_many(ends), strict=True):
            if was and end.event is Event.ACK:
                self.acked.append((end.id, end.lease))
        with self._guard:
            for end in ends:
                self._held.pop(end.id, None)

    def beat(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.extend_many([Beat(job.id, job.lease, 5.0, "on") for job in self.held(dice)], LEASE_S)
        time.sleep(0.005)

    def tick(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.tick(dice.choice([7, 1000]))

    def cancel(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.move_many(self.some(dice), Event.CANCEL, "why not")

    def drop(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.drop_many(self.some(dice))

    def revive(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.move_many(self.some(dice), Event.REVIVE)

    def look(self, store: postgres.Postgres, dice: random.Random) -> None:
        store.get_many(self.some(dice))
        store.find(Filter(queue=dice.choice(QUEUES), limit=50))
        assert store.counts() is not None

    def govern(self, store: postgres.Postgres, dice: random.Random) -> None:
        limited = Queue(name="two", max_workers=dice.choice([0, 30]), dead_letter_queue=dice.choice([None, "dead"]))
        store.put(limited)
        store.put(Queue(name="three", rate_limit=dice.choice([0.0, 500.0]), paused=dice.random() < 0.1))
        store.put(Worker(name="node", pid=dice.randrange(1000)))
        store.drop(Queue, "three")
        time.sleep(0.02)


def odd(id: str, dice: random.Random, keys: int) -> NewJob:
    fields: dict[str, Any] = dict(
        dice.choice([{}, {}, {"delay": 0.2}, {"expires_at": datetime.now(UTC) + timedelta(seconds=0.3)}])
    )
    if keys and dice.random() < 0.1:
        fields["unique_key"] = f"key-{dice.randrange(keys)}"
    return NewJob(type="t", id=id, queue=dice.choice(QUEUES), payload=msgspec.Raw(b"{}"), priority=dice.randrange(4), **fields)


def ending(job: Job, dice: random.Random) -> Settlement:
    event = dice.choices([Event.ACK, Event.RETRY, Event.BURY, Event.RELEASE, Event.SNOOZE, Event.CANCEL], [6, 2, 1, 1, 1, 1])[0]
    due_in = 0.1 if event in (Event.RETRY, Event.SNOOZE) else KEEP_S if event is Event.ACK else None
    return Settlement(job.id, job.lease, event, due_in=due_in, error="no" if event is Event.RETRY else None)


@pytest.fixture
def server(servers: Servers) -> Iterator[Postgres]:
    yield servers.postgres
    servers.postgres.command("DROP SCHEMA IF EXISTS storm CASCADE")


def test_all_at_once_without_keys(server: Postgres) -> None:
    # Given all that locks jobs in one order
    before, logged = server.command(DEADLOCKS), len(server.log)
    # When it is done to the same jobs at once
    storm(server, CREW)
    # Then no two transactions ever wait for each other
    said = server.log[logged:]
    assert DEADLOCK not in said, said[said.index(DEADLOCK) :][:3000]
    assert server.command(DEADLOCKS) == before


def test_everything_at_once(server: Postgres) -> None:
    # Given jobs with unique keys too, which are in no order: what waits in a circle is tried again by the store itself
    before = len(server.log)
    storm(server, CREW, KEYS)
    print(f"{server.log[before:].count(DEADLOCK)} deadlocks")


def test_a_circle_is_tried_again(server: Postgres) -> None:
    # Given somebody who holds the second of two jobs, and will be the last to look whether all wait in a circle
    with closing(postgres.open(f"{server.url}?schema=storm&timeout=20")) as store, psycopg.connect(server.url) as psql:
        store.enqueue_many([NewJob(type="t", id=id) for id in ("a", "b")])
        psql.execute("SET LOCAL deadlock_timeout = '1h'")
        psql.execute("SELECT FROM storm.jobs WHERE id = 'b' FOR UPDATE")
        # When both are cancelled, and he asks for the first one while that waits for him
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(store.move_many, ["a", "b"], Event.CANCEL)
            held_up = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            until("it waits", lambda: server.command(held_up) == [(1,)], NOTICED_S)
            psql.execute("SELECT FROM storm.jobs WHERE id = 'a' FOR UPDATE")
            psql.rollback()
            # Then the store gives way, and does all of it once he has let go
            assert answers.result(NOTICED_S) == [True, True]


def storm(server: Postgres, crew: dict[str, int], keys: int = 0) -> None:
    """Let this crew do what it can, and judge."""
    storm = Storm(keys)
    with ExitStack() as opened:
        # Given several stores as several processes would have, each shared by several threads
        url = f"{server.url}?schema=storm&timeout=20"
        stores = [opened.enter_context(closing(postgres.open(url))) for _ in range(STORES)]
        roles = [role for role, count in crew.items() for _ in range(count)]
        threads = [
            threading.Thread(target=storm.run, args=(stores[n % STORES], role, n), daemon=True) for n, role in enumerate(roles)
        ]
        # When they do all that can be done, to the same jobs
        for thread in threads:
            thread.start()
        storm.over.wait(STORM_S)
        storm.over.set()
        for thread in threads:
            thread.join(60.0)
        # Then no call failed or hung
        assert not [thread for thread in threads if thread.is_alive()]
        print(f"{dict(storm.calls)}; {len(storm.given)} leases, {len(storm.acked)} acks")
        assert not storm.failed, storm.failed
        assert set(storm.calls) == set(crew)
        # And no lease was given twice, nor ended twice
        assert max(Counter(storm.given).values()) == 1
        assert max(Counter(storm.acked).values()) == 1
        # And the numbers are those of the jobs that there are, now and once all has ended
        ticked(stores[0])
        assert stores[0].counts() == shown(stores[0])
        end_all(stores[0])
        agreed(stores[0])


def ticked(store: postgres.Postgres) -> None:
    while store.tick().next_in == 0:
        pass


def end_all(store: postgres.Postgres) -> None:
    """Run what is left."""
    for name in ("two", "three"):
        store.put(Queue(name=name))
    give_up_at = time.monotonic() + 30.0
    while any(state not in FINISHED for _, state in store.counts()):
        assert time.monotonic() < give_up_at, store.counts()
        ticked(store)
        jobs = store.lease(dict.fromkeys((*QUEUES, "dead"), 1000), "last", 60.0)
        assert store.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs]) == [True] * len(jobs)
