"""Where leases begin to look on PostgreSQL: behind what has left, however long a transaction elsewhere keeps it, and never
behind what still waits."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from lab import LEASE_S, Clock, new

from gotask.backends import postgres
from gotask.backends.postgres import due
from gotask.model import Job, Settlement
from gotask.states import Event
from tests.servers.fixtures import Servers, StartPostgres
from tests.servers.postgres import Postgres


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture
def name(server: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    made = f"floors-{abs(hash(request.node.name)) % 10**12}"
    yield made
    server.command(f'DROP SCHEMA IF EXISTS "{made}" CASCADE')


@pytest.fixture
def store(server: Postgres, name: str) -> Iterator[postgres.Postgres]:
    with closing(postgres.open(f"{server.url}?schema={name}")) as made:
        yield made


def survey(server: Postgres, name: str, *, times: int = 2) -> list[int]:
    """Look around twice: once to see who writes, once more when they may have ended. The floors of the default queue."""
    for _ in range(times):
        server.command(f"SELECT \"{name}\".survey_1(0, '{{default}}')")
    ((floors,),) = server.command(f"SELECT floors FROM \"{name}\".lanes WHERE queue = 'default'")
    return list(floors or ())


def lease(store: postgres.Postgres, n: int = 100) -> list[Job]:
    return store.lease({"default": n}, "node-1", LEASE_S)


def names(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def end(store: postgres.Postgres, jobs: list[Job], event: Event = Event.ACK) -> None:
    assert all(store.settle_many([Settlement(job.id, job.lease, event) for job in jobs]))


def test_floors_rise_to_the_first_that_waits(server: Postgres, name: str, store: postgres.Postgres) -> None:
    # Given forty that have left, and two that wait
    store.enqueue_many([new(id=f"a{n:02}") for n in range(40)])
    end(store, lease(store))
    store.enqueue_many([new(id="b"), new(id="urgent", priority=9)])
    # When it is surveyed, then all places but theirs are behind, in each priority
    floors = survey(server, name)
    assert min(floors) > 40
    assert floors == survey(server, name)
    assert names(lease(store)) == ["urgent", "b"]


def test_what_is_given_back_has_its_old_place_below_the_floor(server: Postgres, name: str, store: postgres.Postgres) -> None:
    # Given a job that runs while the floor rises far above its place
    store.enqueue_many([new(id="first")])
    first = lease(store)
    store.enqueue_many([new(id=f"a{n:02}") for n in range(40)])
    end(store, lease(store, 20))
    before = survey(server, name)
    # When it is given back, then the floor is lowered to it, and it is the next
    end(store, first, Event.RELEASE)
    assert min(survey(server, name, times=0)) < min(before)
    assert names(lease(store, 2)) == ["first", "a20"]


def test_a_release_and_a_survey_at_once_lose_nothing(server: Postgres, name: str, store: postgres.Postgres) -> None:
    # Given jobs that are leased and given back over and over while somebody surveys without a pause
    store.enqueue_many([new(id=f"a{n:02}") for n in range(20)])
    over = threading.Event()

    def surveyor() -> None:
        with psycopg.connect(server.url, autocommit=True) as link:
            while not over.is_set():
                link.execute(f"SELECT \"{name}\".survey_1(0, '{{default}}')".encode())

    thread = threading.Thread(target=surveyor)
    thread.start()
    try:
        for _ in range(150):
            jobs = lease(store)
            # Then none of them is ever overlooked
            assert len(jobs) == 20
            end(store, jobs[::2], Event.RELEASE)
            end(store, jobs[1::2], Event.RELEASE)
    finally:
        over.set()
        thread.join(10)


def test_a_transaction_that_commits_late_is_not_behind_the_floor(server: Postgres, name: str, store: postgres.Postgres) -> None:
    # Given a job of a transaction that stays open while later ones come and go
    store.counts()
    with psycopg.connect(server.url) as link:
        store.joined(link).enqueue_many([new(id="late")])
        store.enqueue_many([new(id=f"a{n:02}") for n in range(40)])
        end(store, lease(store))
        # When it is surveyed again and again meanwhile, and it commits at last
        for _ in range(5):
            survey(server, name)
        link.commit()
    # Then it is found, also when the floor has risen to it
    survey(server, name)
    assert names(lease(store)) == ["late"]


def test_a_prepared_transaction_that_outlives_a_restart_is_not_behind_the_floor(start_postgres: StartPostgres) -> None:
    # Given a job of a prepared transaction, which was seen before the server restarts, and later ones that come and go
    server = start_postgres(max_prepared_transactions=1)
    with closing(postgres.open(f"{server.url}?schema=floors")) as store:
        store.counts()
        link = psycopg.connect(server.url)
        link.tpc_begin(link.xid(1, "gtrid", "bqual"))
        store.joined(link).enqueue_many([new(id="late")])
        store.enqueue_many([new(id=f"a{n:02}") for n in range(40)])
        end(store, lease(store))
        survey(server, "floors", times=1)
        link.tpc_prepare()
        link.close()
        server.stop()
        server.start()
        # When it is surveyed meanwhile, and it commits at last
        survey(server, "floors")
        ((name,),) = server.command("SELECT gid FROM pg_prepared_xacts")
        server.command(f"COMMIT PREPARED '{name}'")
        survey(server, "floors")
        # Then it is found
        assert names(lease(store)) == ["late"]


def test_a_revived_job_and_a_promoted_one_are_found(server: Postgres, name: str) -> None:
    clock = Clock()
    with closing(postgres.open(f"{server.url}?schema={name}", clock)) as store:
        store.enqueue_many([new(id="dead"), new(id="soon", delay=5.0)])
        end(store, lease(store), Event.BURY)
        store.enqueue_many([new(id=f"a{n:02}") for n in range(40)])
        end(store, lease(store))
        survey(server, name)
        assert store.move_many(["dead"], Event.REVIVE) == [True]
        clock.now += 6
        store.tick()
        assert names(lease(store)) == ["dead", "soon"]


def test_a_lease_reads_little_while_a_long_transaction_keeps_what_has_left(
    server: Postgres, name: str, store: postgres.Postgres
) -> None:
    # Given a transaction elsewhere that still sees all, and thousands that have left since it began
    store.counts()
    with psycopg.connect(server.url) as pin:
        pin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pin.execute("SELECT 1")
        for _ in range(10):
            store.enqueue_many([new() for _ in range(500)])
            end(store, lease(store, 500))
        survey(server, name)
        # When one more is leased, by a session that knows the catalogue from the one before
        store.enqueue_many([new(), new()])
        with psycopg.connect(server.url, autocommit=True) as link:
            asked = f"SELECT id FROM \"{name}\".lease_1('{{default}}', '{{1}}', 'node-1', 30, NULL)"
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}".encode()
            _, plan = (link.execute(explain).fetchall()[0][0][0] for _ in range(2))
    # Then it did not read its way through them
    read = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert read < 100
    assert plan["Plan"]["Actual Rows"] == 1


def test_lapses_are_looked_for_the_more_seldom_the_longer_a_look_takes(
    store: postgres.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store where a look for leases that lapse has just taken long
    hands = [1000.0]

    def reading() -> float:
        hands[0] += 0.1
        return hands[0]

    monkeypatch.setattr(due, "monotonic", reading)
    store.tick()
    # When one lapses, and another job comes due
    store.enqueue_many([new(id="lapses")])
    store.lease({"default": 1}, "node-1", 0.001)
    store.enqueue_many([new(id="wakes", delay=0.001)])
    time.sleep(0.01)
    done = store.tick()
    # Then only the other is promoted, and the lease lapses once it is time for another look
    assert (done.promoted, done.lapsed) == (1, 0)
    hands[0] += 100.0
    assert store.tick().lapsed == 1
