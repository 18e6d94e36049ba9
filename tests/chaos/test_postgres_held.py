"""Somebody holds a job's row for longer than a lease: its ending waits, and nothing else does."""

import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from gotask import backends
from gotask.model import Worker
from gotask.states import State
from tests.chaos.producer import work
from tests.chaos.witness import agreed, judge, runs
from tests.crash.harness import drained, fetch, kill, node, until
from tests.servers.fixtures import StartPostgres

pytestmark = pytest.mark.timeout(120)
LEASE_S = 3.0
WAITING = "SELECT pid FROM pg_stat_activity WHERE application_name = 'gotask' AND wait_event_type = 'Lock'"
SHORT, FEW = 400, 20  #: jobs beside the one that is held, and how many of them come in at once


def test_a_job_that_somebody_holds_costs_no_other_its_lease(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node that runs a short job and a long one, of which somebody in psql has locked the short one
    server = start_postgres()
    numbers = {"short": 0, "long": 1}
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    flags = ("-c", "4", "--processes", "2", "--lease", f"{LEASE_S:g}")
    with (
        closing(backends.open(server.url)) as store,
        node(server.url, tmp_path, *flags) as running,  # whose calls may take longer than a lease
        psycopg.connect(server.url) as psql,
    ):
        store.enqueue_many([work("short", 0, 3000.0), work("long", 1, 4000 * LEASE_S)])
        until("both run", lambda: len(runs(running.witness)) == 2)
        psql.execute("SELECT FROM gotask.jobs WHERE id = 'short' FOR UPDATE")
        # When it ends, and for three leases nobody lets go of it, while another node looks for leases that lapse
        with node(server.url, other, *flags) as second:
            time.sleep(3 * LEASE_S)
        assert fetch(store, ["short"])["short"].status is State.RUNNING
        psql.rollback()
        # Then both have run once: the node went on telling that it lives, and its other job kept its lease
        ended = {State.SUCCESS}
        until("both have ended", lambda: {job.status for job in fetch(store, list(numbers)).values()} == ended, 20.0)
        judge(store, numbers, runs(running.witness, second.witness))
        agreed(store)


def test_a_job_that_somebody_holds_holds_up_no_other(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node of four slots that runs a job, of which somebody in psql has locked the row
    server = start_postgres()
    numbers = {"held": 0} | {f"short-{n}": n for n in range(1, SHORT + 1)}
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    flags = ("-c", "4", "--processes", "2", "--lease", f"{LEASE_S:g}")
    with (
        closing(backends.open(server.url)) as store,
        node(f"{server.url}?timeout=1", tmp_path, *flags) as running,
        psycopg.connect(server.url) as psql,
    ):
        store.enqueue_many([work("held", 0, 500.0)])
        until("it runs", lambda: len(runs(running.witness)) == 1)
        psql.execute("SELECT FROM gotask.jobs WHERE id = 'held' FOR UPDATE")
        locked = time.monotonic()
        until("its end is held up", lambda: "another transaction has locked" in running.log.read_text(), 10.0)
        short = [work(id, n, 5.0) for id, n in numbers.items() if n]
        # When others come in, each few when those before have ended, then all have ended before the row is let go of
        count = ("default", State.SUCCESS)
        for at in range(0, SHORT, FEW):
            store.enqueue_many(short[at : at + FEW])
            left = 3 * LEASE_S - (time.monotonic() - locked)
            until("so many have ended", lambda so_far=at + FEW: store.counts().get(count) == so_far, left)
        assert fetch(store, ["held"])["held"].status is State.RUNNING
        # And when that is after three leases, while another node looks for leases that lapse, it ends once
        with node(server.url, other, *flags) as second:
            until("three leases are over", lambda: time.monotonic() - locked > 3 * LEASE_S)
            psql.rollback()
            drained(store, 10.0)
        judge(store, numbers, runs(running.witness, second.witness))
        agreed(store)


def test_an_ending_that_is_held_up_outlives_its_dispatcher(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node with an ending that somebody in psql holds up
    server = start_postgres()
    with (
        closing(backends.open(server.url)) as store,
        node(f"{server.url}?timeout=1", tmp_path, "--lease", f"{LEASE_S:g}") as running,
        psycopg.connect(server.url) as psql,
    ):
        store.enqueue_many([work("held", 0, 500.0)])
        until("it runs", lambda: len(runs(running.witness)) == 1)
        psql.execute("SELECT FROM gotask.jobs WHERE id = 'held' FOR UPDATE")
        until("its end is held up", lambda: "another transaction has locked" in running.log.read_text(), 10.0)
        # When its dispatcher is killed
        (old,) = running.of("dispatcher")
        kill(old.pid)
        until("there is another", lambda: [child.pid for child in running.of("dispatcher")] not in ([], [old.pid]))
        store.enqueue_many([work("next", 1, 0.0)])
        until("that works", lambda: fetch(store, ["next"])["next"].status is State.SUCCESS, 10.0)
        psql.rollback()
        # Then the next one writes it down, and the job does not run again
        drained(store, 10.0)
        judge(store, {"held": 0, "next": 1}, runs(running.witness))
        agreed(store)


def test_a_node_that_is_stopped_does_not_wait_for_ever(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node with an ending that somebody in psql holds up
    server = start_postgres()
    flags = ("--lease", f"{LEASE_S:g}")
    with (
        closing(backends.open(server.url)) as store,
        node(f"{server.url}?timeout=1", tmp_path, *flags, "--shutdown-timeout", "1") as running,
        psycopg.connect(server.url) as psql,
    ):
        store.enqueue_many([work("held", 0, 500.0)])
        until("it runs", lambda: len(runs(running.witness)) == 1)
        psql.execute("SELECT FROM gotask.jobs WHERE id = 'held' FOR UPDATE")
        until("its end is held up", lambda: "another transaction has locked" in running.log.read_text(), 10.0)
        # When it is stopped, then it ends in time and by itself, and says what it leaves behind
        assert running.stop(10.0) == 0
        said = running.log.read_text()
        assert "the job runs again once its lease has lapsed" in said
        assert "Killing" not in said
        assert store.all(Worker) == []
        # And once what it had asked for is over too, and the row is let go of, the next one runs the job again
        until("nobody waits for the row", lambda: not server.command(WAITING), 10.0)
        psql.rollback()
        running.restart()
        drained(store, 20.0)
        assert judge(store, {"held": 0}, runs(running.witness), repeated=1) == 1
        agreed(store)
