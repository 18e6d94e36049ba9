"""What only the PostgreSQL storage has: two places for an id, days of history, forks, restarts, and ears that fail."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import psycopg
import pytest
from lab import LEASE_S, Clock, new, until

from gotask.backends import postgres
from gotask.backends.postgres import due
from gotask.clock import now
from gotask.errors import BackendDown
from gotask.model import Filter, Job, Settlement
from gotask.states import DAY_S, Event, State
from tests.servers.fixtures import Servers, StartPostgres, StartProxy
from tests.servers.postgres import Postgres


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture
def url(server: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store of the test's own on the shared server."""
    name = f"own-{abs(hash(request.node.name)) % 10**12}"
    yield f"{server.url}?schema={name}"
    server.command(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture
def store(url: str) -> Iterator[postgres.Postgres]:
    with closing(postgres.open(url)) as made:
        yield made


def schema(url: str) -> str:
    return url.rpartition("schema=")[2]


def running(store: postgres.Postgres, id: str = "j") -> Job:
    store.enqueue_many([new(id=id)])
    (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
    return job


def end(store: postgres.Postgres, *jobs: Job) -> None:
    assert store.settle_many([Settlement(job.id, job.lease, Event.ACK, result=b"7") for job in jobs]) == [True] * len(jobs)


# an id, in one of two tables


def test_an_id_is_one_job_also_at_the_instant_its_run_settles(url: str, store: postgres.Postgres) -> None:
    # Given jobs that move from the one table to the other while three sides enqueue them again and again
    rounds, doubles, failed = 60, [], []
    ready, done = threading.Barrier(4), threading.Barrier(4)

    def again() -> None:
        try:
            with closing(postgres.open(url)) as other:
                for n in range(rounds):
                    ready.wait(30)
                    for _ in range(4):
                        doubles.extend(a for a in other.enqueue_many([new(id=f"j{n}")]) if a.outcome != "duplicate")
                    done.wait(30)
        except BaseException as e:
            failed.append(e)
            ready.abort()
            done.abort()
            raise

    threads = [threading.Thread(target=again) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(rounds):
        job = running(store, f"j{n}")
        ready.wait(30)
        if n % 3 == 2:
            assert store.settle_many([Settlement(job.id, job.lease, Event.BURY)]) == [True]
            assert store.move_many([job.id], Event.REVIVE) == [True]  # and back again
            (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
        end(store, job)
        done.wait(30)
    for thread in threads:
        thread.join(30)
    # Then none of them was made twice
    assert failed == []
    assert doubles == []
    assert store.counts() == {("default", State.SUCCESS): rounds}
    assert len(store.find(Filter(limit=500)).jobs) == rounds


def test_two_batches_of_the_same_ids_in_opposite_orders_do_not_block_each_other(url: str) -> None:
    names = [f"j{n}" for n in range(300)]
    answers: list[str] = []

    def enqueue(order: list[str]) -> None:
        with closing(postgres.open(url)) as store:
            for at in range(0, 300, 100):
                answers.extend(a.outcome for a in store.enqueue_many([new(id=id) for id in order[at : at + 100]]))

    threads = [threading.Thread(target=enqueue, args=(order,)) for order in (names, names[::-1])]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == ["created"] * 300 + ["duplicate"] * 300
    assert time.monotonic() - begun < 10.0


# history


def days(server: Postgres, url: str) -> set[str]:
    asked = "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relkind = 'r'"
    return {name for (name,) in server.command(asked, schema(url)) if name.startswith("history_2")}


@pytest.mark.parametrize("strings", ["on", "off"])
def test_finished_jobs_lie_by_the_day_on_which_they_are_forgotten_and_go_with_it(
    server: Postgres, url: str, strings: str
) -> None:
    # Given a store under a clock, a session that reads \ in this way, and jobs that ended before any day had a table of its own
    clock = Clock()
    options = f"?options=-c%20standard_conforming_strings%3D{strings}&"
    with closing(postgres.open(url.replace("?", options), clock)) as store:
        end(store, running(store, "early"))
        # When it is tended, then there are tables for all that may end today, and what lay elsewhere moved
        store.tick()
        first = days(server, url)
        assert len(first) == len({day for keep in (0, *due.KEEP_DAYS) for day in (keep, keep + 1)})
        assert server.command(f'SELECT count(*) FROM "{schema(url)}".history_rest') == [(0,)]
        job = running(store, "bad")
        assert store.settle_many([Settlement(job.id, job.lease, Event.BURY)]) == [True]
        # And when days have passed, then what is forgotten went with its table, and what is kept longer is there
        clock.now += 4 * DAY_S
        while store.tick().next_in == 0:
            pass
        clock.now += DAY_S
        store.enqueue_many([new(id="x", expires_at=None, delay=0.0)])
        store.tick()
        assert [job and job.id for job in store.get_many(["early", "bad"])] == [None, "bad"]
        assert store.counts() == {("default", State.FAILED): 1, ("default", State.PENDING): 1}
        gone = first - days(server, url)
        assert len(gone) >= 1
        # And a forgotten id is free again
        assert store.enqueue_many([new(id="early")])[0].outcome == "created"


def test_days_are_made_while_a_transaction_is_in_the_way_of_dropping_some(server: Postgres, url: str) -> None:
    # Given tables of days, and a transaction that holds what one that completed a job does
    clock = Clock()
    with closing(postgres.open(url, clock)) as store, psycopg.connect(server.url) as link:
        end(store, running(store, "early"))
        store.tick()
        before = days(server, url)
        link.execute(f'LOCK TABLE ONLY "{schema(url)}".history IN ROW EXCLUSIVE MODE'.encode())
        # When the first of them are over, then the next are made, and none goes
        clock.now += 4 * DAY_S
        store.tick()
        assert days(server, url) > before
        # And when the transaction has ended, what is over goes
        link.commit()
        store._due._tend_at = 0.0
        store.tick()
        assert before - days(server, url)


def test_tallies_are_added_up_and_the_sums_stay(server: Postgres, url: str) -> None:
    clock = Clock()
    with closing(postgres.open(url, clock)) as moved:
        for n in range(due.FOLD_AT // 2 + 1):
            moved.enqueue_many([new(id=f"j{n}")])
        for _ in range(due.FOLD_AT // 4):
            end(moved, *moved.lease({"default": 1}, "n", LEASE_S))
        before = moved.counts()
        moved.tick()
        assert server.command(f'SELECT count(*) FROM "{schema(url)}".tallies') == [(0,)]
        assert moved.counts() == before
        clock.now += DAY_S + 61
        while moved.tick().next_in == 0:
            pass
        assert set(moved.counts()) == {("default", State.PENDING)}


# processes and servers that go


def test_a_forked_child_and_its_parent_both_go_on(store: postgres.Postgres) -> None:
    # Given a store with a connection, an ear and a ringer
    job = running(store)
    watch = store.watch(["queue:default", "job:j"])
    until(lambda: not watch.wait(0.0), "it is quiet")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine = store.watch(["job:j"])
            end(store, job)
            code = 0 if mine.wait(10.0) == {"job:j"} and store.enqueue_many([new(id="k")])[0].outcome == "created" else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    # Then the parent hears of it, and its own connections still work
    assert "job:j" in watch.wait(10.0)
    found = store.get_many(["j", "k"])
    assert [job and job.status for job in found] == [State.SUCCESS, State.PENDING]


def test_a_restart_goes_unnoticed_by_who_did_not_call_meanwhile(start_postgres: StartPostgres) -> None:
    # Given a job that runs, and a listener
    server = start_postgres()
    with closing(postgres.open(server.url)) as store:
        job = running(store)
        watch = store.watch(["job:j", "queue:other"])
        # When the server is killed and comes back
        server.kill()
        server.start()
        # Then all is as it was, and the listener is sent to look for itself
        found = store.get_many(["j"])[0]
        assert found is not None
        assert found.lease in (job.lease, 0)  # a lease is not waited for on the disk
        assert watch.wait(10.0) == {"job:j", "queue:other"}


def test_whoever_cannot_listen_looks_from_time_to_time(url: str) -> None:
    with closing(postgres.open(f"{url}&notify=off")) as deaf:
        watch = deaf.watch(["queue:default"])
        assert watch.wait(5.0) == {"queue:default"}
        assert watch.wait(0.0) == set()
    # and what it does itself is not told to others
    with closing(postgres.open(f"{url}&notify=off")) as silent, closing(postgres.open(f"{url}&poll=60")) as seldom:
        ear = seldom.watch(["queue:default"])
        silent.enqueue_many([new()])
        assert ear.wait(0.3) == set()


def test_whoever_just_found_a_job_looks_for_the_next_while_its_ring_is_held_back(url: str) -> None:
    # Given a producer that may ring once in ten seconds, and two that listen and look by themselves once a minute
    patient = f"{url}&notify=10&poll=60"
    with (
        closing(postgres.open(patient)) as producer,
        closing(postgres.open(patient)) as one,
        closing(postgres.open(patient)) as other,
    ):
        finder, idler = one.watch(["queue:default"]), other.watch(["queue:default"])
        until(lambda: not finder.wait(0.0) and not idler.wait(0.0), "it is quiet")
        producer.enqueue_many([new(id="first")])
        assert finder.wait(5.0) == idler.wait(5.0) == {"queue:default"}
        # When one of them finds the first job, and a second comes
        assert [job.id for job in one.lease({"default": 5}, "n", LEASE_S)] == ["first"]
        producer.enqueue_many([new(id="second")])
        # Then that one is sent to look at once, and the other is left alone
        assert finder.wait(5.0) == {"queue:default"}
        assert idler.wait(0.3) == set()


def test_whoever_cannot_listen_and_waits_in_short_naps_looks_too(url: str) -> None:
    with closing(postgres.open(f"{url}&notify=off")) as deaf:
        watch = deaf.watch(["queue:default"])
        heard = [watch.wait(0.1) for _ in range(10)]
        assert 2 <= heard.count({"queue:default"}) <= 4


def test_a_cut_line_is_said_in_time_and_mended(server: Postgres, url: str, start_proxy: StartProxy) -> None:
    proxy = start_proxy(server.address)
    through = url.replace(server.address, proxy.address)
    with closing(postgres.open(f"{through}&timeout=0.5&notify=off")) as store:
        store.enqueue_many([new(id="j")])
        proxy.black_hole()
        begun = time.monotonic()
        with pytest.raises(BackendDown, match=r"did not answer within 0\.5 s"):
            store.counts()
        assert time.monotonic() - begun < 2.0
        proxy.heal()
        until(lambda: store.counts() == {("default", State.PENDING): 1}, "it works again")


def test_text_of_any_kind_comes_back(store: postgres.Postgres) -> None:
    for text in ("\\", "\\0", "a\0b", "\\\\0", "\0\0", "x" * 300 + "\\n"):
        job = running(store, f"j{abs(hash(text))}")
        assert store.settle_many([Settlement(job.id, job.lease, Event.BURY, error=text, reason=text)]) == [True]
        found = store.get_many([job.id])[0]
        assert found is not None
        assert (found.error, found.reason) == (text, text)


def test_a_node_of_any_name_finds_its_jobs(store: postgres.Postgres) -> None:
    store.enqueue_many([new() for _ in range(3)])
    for name in ("no\\de", "\\0", "é"):
        (job,) = store.lease({"default": 1}, name, LEASE_S)
        assert job.worker_id == name
        assert [found.id for found in store.find(Filter(worker_id=name)).jobs] == [job.id]
        assert store.move_many([job.id], Event.CANCEL) == [True]
        assert [found.id for found in store.find(Filter(worker_id=name)).jobs] == [job.id]


def test_the_time_is_the_servers(store: postgres.Postgres) -> None:
    job = running(store)
    assert job.started_at is not None
    assert job.due_at is not None
    assert abs(job.started_at.timestamp() - now()) < 5.0
    assert job.due_at - job.started_at == timedelta(seconds=LEASE_S)
