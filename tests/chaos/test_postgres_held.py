"""Somebody holds a job's row for longer than a lease: its ending waits, and no lease is lost meanwhile."""

import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from gotask import backends
from gotask.states import State
from tests.chaos.producer import work
from tests.chaos.witness import agreed, judge, runs
from tests.crash.harness import fetch, node, until
from tests.servers.fixtures import StartPostgres

pytestmark = pytest.mark.timeout(120)
LEASE_S = 3.0


def test_a_job_that_somebody_holds_costs_no_other_its_lease(start_postgres: StartPostgres, tmp_path: Path) -> None:
    # Given a node that runs a short job and a long one, of which somebody in psql has locked the short one
    server = start_postgres()
    numbers = {"short": 0, "long": 1}
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    flags = ("-c", "4", "--processes", "2", "--lease", f"{LEASE_S:g}")
    with (
        closing(backends.open(server.url)) as store,
        node(f"{server.url}?timeout=1", tmp_path, *flags) as running,
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
