"""PostgreSQL's connections and servers are ended under load: what was answered is still there, and nodes go on."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median

import psycopg
import pytest

from gotask import backends
from gotask.errors import BackendDown
from gotask.model import Settlement
from gotask.states import Event, State
from tests.chaos.producer import Producer, fresh, work
from tests.chaos.scale import so_many
from tests.chaos.site import at_work
from tests.chaos.witness import agreed, explained, judge, runs
from tests.crash.harness import Node, drained, fetch, node, until
from tests.servers.fixtures import StartPostgres
from tests.servers.postgres import Postgres

pytestmark = pytest.mark.timeout(3600)
CUTS = so_many(15, 1000)
CUT_EVERY_S = 0.3
MORE = 8  #: connections that a node may have more than before: its threads open them when several first need one at once
SETTLED_S = 1.0  #: from the end of a body until its settlement is on the disk, on a busy machine
#: of a server that keeps in memory for long what nobody waits for, so that it is lost for sure when it is killed
LAZY = {"wal_writer_delay": "10s", "checkpoint_timeout": "1h", "autovacuum": "off"}
WAITING = "SELECT pid FROM pg_stat_activity WHERE application_name = 'gotask' AND wait_event_type = 'Lock'"

#: how a server ends, and how often: "immediate" as `pg_ctl stop -m immediate`, "fast" as a restart by an administrator
ENDS: dict[str, tuple[Callable[[Postgres], object], int]] = {
    "immediate": (lambda server: server.end(signal.SIGQUIT), so_many(4, 50)),
    "killed": (lambda server: server.kill(), so_many(3, 50)),
    "fast": (lambda server: server.end(signal.SIGINT), so_many(2, 20)),
}


def connections(server: Postgres) -> int:
    ((found,),) = server.command("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gotask'")
    return int(found)


def cut(server: Postgres) -> int:
    """End all connections but the one that asks; how many there were."""
    asked = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'gotask'"
    ((found,),) = server.command(asked)
    return int(found)


def open_files(running: Node) -> int:
    """Of arbiter and dispatcher, which outlive all connections."""
    lasting = [running.process.pid, *(child.pid for child in running.of("dispatcher"))]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in lasting)


def test_all_connections_are_ended_again_and_again(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given two nodes and two producers at work
    server = start_postgres()
    numbers: dict[str, int] = {}
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    with at_work(server, tmp_path, numbers) as (running, store), node(server.url, other, "-c", "2") as second:
        before, files = connections(server), open_files(running)
        ended = 0
        url = f"{server.url}?timeout=1"
        with Producer(url, 200.0) as load, Producer(url, 200.0, name="more", seed=1) as more:
            # When all connections are terminated every 300 ms
            for _ in range(CUTS):
                time.sleep(CUT_EVERY_S)
                ended += cut(server)
            took = fresh(store, numbers)
        # Then work goes on within five seconds, and each accepted job has ended, once: no lease was lost, and none lapsed
        print(f"{CUTS} cuts of {ended} connections: {took:.2f} s; {load.failures + more.failures} calls failed")
        drained(store, 60.0)
        sent = numbers | load.numbers | more.numbers
        judge(store, sent, runs(running.witness, second.witness))
        agreed(store)
        assert ended >= 2 * CUTS
        assert load.failures + more.failures
        # And there are about as many connections and open files as before
        until("connections are closed", lambda: connections(server) <= before + MORE, 10.0)
        until("files are closed", lambda: open_files(running) <= files + MORE, 10.0)


@pytest.mark.parametrize("how", list(ENDS))
def test_a_server_that_ends_and_comes_back_loses_nothing(start_postgres: StartPostgres, tmp_path: Path, how: str) -> None:
    # Given a server that answers once what it did is on its disk, a producer and a node at work
    end, times = ENDS[how]
    server = start_postgres()
    numbers: dict[str, int] = {}
    faults, took = [], []
    with at_work(server, tmp_path, numbers) as (running, store):
        before, files = connections(server), open_files(running)
        with Producer(f"{server.url}?timeout=1") as load:
            # When it ends again and again
            for _ in range(times):
                time.sleep(0.5)
                broken = time.monotonic()
                end(server)
                server.start()
                faults.append((broken, time.monotonic()))
                took.append(fresh(store, numbers))
        # Then workers run jobs within five seconds each time
        drained(store, 60.0)
        # And each accepted job has ended; what ran twice had a lease that the end undid, since a lease is not waited for
        seen = runs(running.witness)
        repeated = judge(store, numbers | load.numbers, seen, explained(seen, faults, SETTLED_S))
        print(
            f"{how} {times} times: p50 {median(took):.2f} s, most {max(took):.2f} s; {len(load.numbers)} accepted, "
            f"{repeated} ran twice, {load.failures} calls failed"
        )
        agreed(store)
        assert load.failures
        until("connections are closed", lambda: connections(server) <= before + MORE, 10.0)
        until("files are closed", lambda: open_files(running) <= files + MORE, 10.0)


def test_what_was_answered_is_on_the_disk(start_postgres: StartPostgres) -> None:
    # Given a server that leaves in memory for long what nobody waits for
    server = start_postgres(**LAZY)
    with closing(backends.open(server.url)) as store:
        for n in range(so_many(1, 20)):
            store.enqueue_many([work(f"{word}-{n}", n, 0.0) for word in ("ended", "later", "failed", "held")])
            jobs = {job.id.partition("-")[0]: job for job in store.lease({"default": 4}, "node", 60.0)}
            del jobs["held"]
            # When it is killed right after it answered
            said = {"ended": Event.ACK, "later": Event.RETRY, "failed": Event.BURY}
            endings = [Settlement(job.id, job.lease, said[word], due_in=3600.0) for word, job in jobs.items()]
            assert store.settle_many(endings) == [True] * 3
            server.kill()
            server.start()
            # Then the endings hold
            found = {job.id: job.status for job in fetch(store, [job.id for job in jobs.values()]).values()}
            assert found == {f"ended-{n}": State.SUCCESS, f"later-{n}": State.RETRYING, f"failed-{n}": State.FAILED}
            # And so does an enqueue, a cancel, a revival and a record
            assert store.enqueue_many([work(f"new-{n}", n, 0.0)])[0].outcome == "created"
            server.kill()
            server.start()
            assert fetch(store, [f"new-{n}"])
            assert store.move_many([f"new-{n}"], Event.CANCEL) == [True]
            server.kill()
            server.start()
            assert fetch(store, [f"new-{n}"])[f"new-{n}"].status is State.CANCELLED


def test_a_lease_that_is_undone_never_comes_back(start_postgres: StartPostgres) -> None:
    # Given leases that only memory knows
    server = start_postgres(**LAZY)
    with closing(backends.open(server.url)) as store:
        store.enqueue_many([work("j", 1, 0.0)])
        given: list[int] = []
        for _ in range(so_many(3, 20)):
            (job,) = store.lease({"default": 1}, "node", 60.0)
            given.append(job.lease)
            # When they are lost with the server
            server.kill()
            server.start()
            # Then the job waits again, and its old numbers are refused, and never given again
            found = fetch(store, ["j"])["j"]
            assert (found.status, found.lease) == (State.PENDING, 0), "it was on the disk: this proves nothing"
            assert store.settle_many([Settlement("j", number, Event.ACK) for number in given]) == [False] * len(given)
        assert given == sorted(set(given))
        (job,) = store.lease({"default": 1}, "node", 60.0)
        assert job.lease > max(given)
        assert store.settle_many([Settlement("j", number, Event.ACK) for number in given]) == [False] * len(given)
        assert store.settle_many([Settlement("j", job.lease, Event.ACK)]) == [True]
        agreed(store)


def test_a_node_whose_leases_are_undone_runs_those_jobs_again(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node whose jobs run for longer than its server takes to come back
    server = start_postgres(**LAZY)
    numbers: dict[str, int] = {}
    with at_work(server, tmp_path, numbers) as (running, store):
        faults = []
        for cycle in range(5):
            long = {f"long-{cycle}-{n}": 100 + n for n in range(4)}
            store.enqueue_many([work(id, n, 2500.0) for id, n in long.items()])
            until("they run", lambda long=long: {run.job for run in runs(running.witness)} >= set(long), 10.0)
            # When the server forgets that they were leased
            broken = time.monotonic()
            server.kill()
            server.start()
            faults.append((broken, time.monotonic()))
            # Then they run once more, under leases of their own, and end once
            drained(store, 60.0)
            numbers |= long
            seen = runs(running.witness)
            if judge(store, numbers, seen, explained(seen, faults, SETTLED_S)):
                break  # else somebody had waited for a later write, and that took the leases to the disk too
        else:
            pytest.fail("no lease was undone")
        agreed(store)


def test_a_call_that_waits_for_somebody_is_ended(start_postgres: StartPostgres) -> None:
    # Given a call under way, which waits for a lock of somebody else
    server = start_postgres()
    with closing(backends.open(server.url)) as store, psycopg.connect(server.url) as other, ThreadPoolExecutor(1) as beside:
        store.enqueue_many([work("j", 1, 0.0)])
        other.execute("SELECT FROM gotask.jobs WHERE id = 'j' FOR UPDATE")
        call = beside.submit(store.move_many, ["j"], Event.CANCEL)
        # When its connection is terminated
        until("it waits", lambda: server.command(f"SELECT count(*) FROM ({WAITING}) w") == [(1,)], 5.0)
        server.command(f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) w")
        # Then it says so, and did nothing; and the next one works
        with pytest.raises(BackendDown, match="cannot be reached"):
            call.result(5.0)
        other.rollback()
        assert store.counts() == {("default", State.PENDING): 1}
        assert store.move_many(["j"], Event.CANCEL) == [True]


def test_a_forked_child_does_not_talk_on_the_lines_of_its_parent(start_postgres: StartPostgres) -> None:
    # Given a store with a connection
    with closing(backends.open(start_postgres().url)) as store:
        store.enqueue_many([work(name, 1, 0.0) for name in ("parent", "child")])
        # When a child of the process uses the store while its parent does
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if all(fetch(store, ["child"]).keys() == {"child"} for _ in range(300)) else 2
                store.close()
            finally:
                os._exit(code)
        # Then each has its own answers
        try:
            assert all(fetch(store, ["parent"]).keys() == {"parent"} for _ in range(300))
        finally:
            assert os.waitpid(pid, 0)[1] == 0
