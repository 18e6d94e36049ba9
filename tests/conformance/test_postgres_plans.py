"""How PostgreSQL goes about it when the tables are large: by the index that was made for it, and reading little, at any depth.

    PLANS_ROWS=5000000 pytest tests/conformance/test_postgres_plans.py --timeout 1800

Without it there are 300,000 jobs. Seen are the plans of the real statements while calls run, those inside of functions too. The
statistics are those of other tables than there are now, as they are in the minute after a flood, and then fresh ones.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from flood import flood
from lab import LEASE_S, new
from plans import SETTINGS, Plan, during, explained

from gotask.backends import postgres
from gotask.backends.postgres.rows import ints
from gotask.model import Beat, Filter, Job, Queue, Settlement
from gotask.states import Event, State
from tests.servers.postgres import Postgres

ROWS: Final = int(os.environ.get("PLANS_ROWS", "300000"))
BATCH: Final = 10  #: jobs of one call
WHOLE_MOST: Final = 1000  #: rows of a table that may be read whole, since it is so small: the first of its day
ROWS_MOST: Final = 60 * BATCH  #: read of jobs and history by one call, all in all
BLOCKS_MOST: Final = (
    60 * BATCH
)  #: looked at by one call: to change a job is to change each of its indexes, of three or four levels


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    folder: Path = tmp_path_factory.mktemp("plans")
    with Postgres(folder, **SETTINGS) as server:  # type: ignore[arg-type]  # settings of PostgreSQL
        with closing(postgres.open(f"{server.url}?schema=plans")) as store:
            store._server.call("tend", ints(range(9)), None)  # as if it had been there for a week
        flood(server, "plans", ROWS)
        yield server


@pytest.fixture(scope="module", params=["misleading", "fresh"])
def store(server: Postgres, request: pytest.FixtureRequest) -> Iterator[postgres.Postgres]:
    """With statistics of one kind, and one connection, so that what a session learns at first is learned when it is judged."""
    if request.param == "fresh":
        server.command("ANALYZE")
    with closing(postgres.open(explained(f"{server.url}?schema=plans&connections=1&notify=off&timeout=60"))) as made:
        yield made


def judge(plans: list[Plan], *indexes: str, rows: int = ROWS_MOST, blocks: int = BLOCKS_MOST) -> None:
    """That these indexes were used, no large table was read whole, and little of any; and that nothing was compiled for it."""
    assert not [plan.statement for plan in plans if plan.compiled]
    scans = [scan for plan in plans for scan in plan.scans if scan.table == "jobs" or scan.table.startswith("history")]
    said = "\n".join(f"{scan.how} {scan.table} {scan.index} {scan.rows:.0f}" for scan in scans if scan.rows > WHOLE_MOST / 10)
    for scan in scans:
        assert scan.how != "Seq Scan" or scan.rows <= WHOLE_MOST, said
    used = {scan.index for scan in scans}
    for index in indexes:
        assert any(
            name.startswith("history_") and name.endswith(index) if index.startswith("_") else name == index for name in used
        ), used
    assert sum(scan.rows for scan in scans if scan.how != "Seq Scan") <= rows, said
    assert max(plan.buffers for plan in plans) <= blocks, said


_numbers = count()


def leased(store: postgres.Postgres) -> list[Job]:
    return store.lease({"default": BATCH}, "node-1", LEASE_S)


def named() -> list[str]:
    return [f"new-{next(_numbers)}" for _ in range(BATCH)]


def settled(store: postgres.Postgres, event: Event) -> Callable[[], Any]:
    ends = [Settlement(job.id, job.lease, event, result=b"1" if event is Event.ACK else None) for job in leased(store)]
    return lambda: store.settle_many(ends)


def extended(store: postgres.Postgres) -> Callable[[], Any]:
    beats = [Beat(job.id, job.lease, 0.5, "half way") for job in leased(store)]
    return lambda: store.extend_many(beats, LEASE_S)


def limited(store: postgres.Postgres) -> Callable[[], Any]:
    store.put(Queue(name="mail", max_workers=100_000, rate_limit=1e6))
    return lambda: store.lease({"mail": BATCH}, "node-1", LEASE_S)


def ended(store: postgres.Postgres) -> list[str]:
    jobs = leased(store)
    store.settle_many([Settlement(job.id, job.lease, Event.BURY) for job in jobs])
    return [job.id for job in jobs]


def revived(store: postgres.Postgres) -> Callable[[], Any]:
    ids = ended(store)
    return lambda: store.move_many(ids, Event.REVIVE)


def ticked(store: postgres.Postgres) -> Callable[[], Any]:
    store._due._look_at = 0.0  # it looks for lapses, too
    return lambda: store.tick(BATCH)


def dropped(store: postgres.Postgres) -> Callable[[], Any]:
    ids = [*ended(store)[:5], *(job.id for job in store.find(Filter(status=State.PENDING, limit=5)).jobs)]
    return lambda: store.drop_many(ids)


def cancelled(store: postgres.Postgres) -> Callable[[], Any]:
    ids = [job.id for job in [*leased(store)[:5], *store.find(Filter(status=State.SCHEDULED, limit=5)).jobs]]
    return lambda: store.move_many(ids, Event.CANCEL)


def known(_: postgres.Postgres) -> list[Any]:
    jobs = [new(id=f"{letter}{n}") for letter in "jh" for n in (17, 3017)]
    return [*jobs, *(new(unique_key=f"k{n}") for n in (1000, 2000)), *(new() for _ in range(4))]


#: what is asked -> what makes a call of it, the indexes by which it must find, and how much more it may read
CALLS: Final[dict[str, tuple[Callable[[postgres.Postgres], Callable[[], Any]], tuple[str, ...], int]]] = {
    "lease": (lambda store: lambda: leased(store), ("jobs_ready",), 0),
    "lease from a small queue": (lambda store: lambda: store.lease({"rare": 3}, "n", LEASE_S), ("jobs_ready",), 0),
    "lease from an empty queue": (lambda store: lambda: store.lease({"none": 3}, "n", LEASE_S), ("jobs_ready",), 0),
    # all that run are counted
    "lease from a queue with limits": (limited, ("jobs_ready", "jobs_lapses"), 2500),
    "extend": (extended, ("jobs_id",), 0),
    "ack": (lambda store: settled(store, Event.ACK), ("jobs_id",), 0),
    "bury": (lambda store: settled(store, Event.BURY), ("jobs_id",), 0),
    "retry": (lambda store: settled(store, Event.RETRY), ("jobs_id",), 0),
    "revive": (revived, ("_id_idx",), WHOLE_MOST),
    "drop": (dropped, ("jobs_id", "_id_idx"), WHOLE_MOST),
    "cancel": (cancelled, ("jobs_id",), 0),
    "enqueue": (lambda store: lambda: store.enqueue_many([new() for _ in range(BATCH)]), (), 0),
    "enqueue with ids": (lambda store: lambda: store.enqueue_many([new(id=id) for id in named()]), ("_id_idx",), 0),
    "enqueue what is known": (lambda store: lambda: store.enqueue_many(known(store)), ("jobs_id", "_id_idx"), WHOLE_MOST),
    "get": (lambda store: lambda: store.get_many(["j17", "h17", "none"]), ("jobs_id", "_id_idx"), WHOLE_MOST),
    "tick": (ticked, ("jobs_lapses", "jobs_wakes"), 0),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_goes_by_its_index_and_reads_little(server: Postgres, store: postgres.Postgres, what: str) -> None:
    call, indexes, more = CALLS[what]
    for _ in range(7):
        call(store)()  # the first calls of a session plan, and a plan of its own is given up after five
    plans, _ = during(server, call(store))
    judge(plans, *indexes, rows=ROWS_MOST + more, blocks=BLOCKS_MOST + more)


#: of the newest: along the order of the list
PAGES: Final[dict[str, tuple[Filter, tuple[str, ...]]]] = {
    "all": (Filter(), ("jobs_pkey", "_status_seq_idx")),
    "a queue": (Filter(queue="default"), ("jobs_pkey", "_status_seq_idx")),
    "a type": (Filter(type="echo"), ("jobs_pkey", "_status_seq_idx")),
    "waiting": (Filter(status=State.PENDING), ("jobs_pkey",)),
    "waiting in a small queue": (Filter(status=State.PENDING, queue="rare"), ("jobs_ready",)),
    "for later": (Filter(status=State.SCHEDULED), ("jobs_pkey",)),
    "to be tried again": (Filter(status=State.RETRYING), ("jobs_pkey",)),
    "running": (Filter(status=State.RUNNING), ("jobs_lapses",)),
    "running on a node": (Filter(status=State.RUNNING, worker_id="node-1"), ("jobs_lapses",)),
    "done": (Filter(status=State.SUCCESS), ("_status_seq_idx",)),
    "given up": (Filter(status=State.CANCELLED), ("_status_seq_idx",)),
    "too late": (Filter(status=State.EXPIRED), ("_status_seq_idx",)),
}


@pytest.mark.parametrize("what", PAGES)
def test_a_page_goes_along_the_order_and_ends_when_it_is_full(server: Postgres, store: postgres.Postgres, what: str) -> None:
    filter, indexes = PAGES[what]
    plans, page = during(server, lambda: store.find(filter))
    running = 4000 if filter.status is State.RUNNING else 0  # all that run are read
    judge(plans, *indexes, rows=5000, blocks=BLOCKS_MOST + running)
    # And so does one further down
    if page.next_cursor:
        filter.cursor = page.next_cursor
        plans, page = during(server, lambda: store.find(filter))
        judge(plans, rows=5000, blocks=BLOCKS_MOST + running)


def test_forgetting_a_million_finished_jobs_touches_none_of_them(server: Postgres, store: postgres.Postgres) -> None:
    plans, _ = during(server, lambda: store._server.call("forget", 10**9, store._at()))
    judge(plans, rows=0, blocks=20_000)
