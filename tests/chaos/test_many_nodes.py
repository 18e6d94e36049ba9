"""Two and ten nodes on one Redis: they share the work, keep its limits between them, and take over from one that is gone."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from math import inf
from pathlib import Path

import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.model import Queue
from tests.chaos.producer import fresh, work
from tests.chaos.scale import so_many
from tests.chaos.witness import Run, judge, most_at_once, runs
from tests.crash.harness import Node, drained, kill, node, until
from tests.servers.fixtures import Servers

pytestmark = pytest.mark.timeout(1800)
LEASE_S = 2.0
SLACK_S = 2.0  #: seconds that a busy machine may take on top
LIMIT = 3
PER_NODE = 2
LONG_MS = 1000.0


@contextmanager
def several(storage: str, folder: Path, count: int, *flags: str) -> Iterator[list[Node]]:
    """Nodes with a folder of their own each, as if each were on another machine."""
    with ExitStack() as stack:
        started = []
        for n in range(count):
            own = folder / f"node-{n}"
            own.mkdir(mode=0o700)
            small = ("-c", f"{PER_NODE}", "--processes", "1", "--worker-id", f"node-{n}")
            started.append(stack.enter_context(node(storage, own, *small, *flags)))
        yield started


def ran(nodes: list[Node], numbers: dict[str, int]) -> list[Run]:
    return [run for run in runs(*(one.witness for one in nodes)) if run.job in numbers]


@pytest.mark.parametrize(("count", "shards"), [(2, 1), (10, 1), (2, 4)])
def test_nodes_share_the_work_and_keep_its_limits(servers: Servers, tmp_path: Path, count: int, shards: int) -> None:
    # Given some nodes that are up
    url = f"{servers.redis.url}?prefix=many-{count}-{shards}&shards={shards}"
    with closing(backends.open(url)) as store, several(url, tmp_path, count) as nodes:
        until("all nodes are up", lambda: all_work(nodes, store), 90.0)
        # When there is work for all of them
        numbers = {f"shared-{n}": n for n in range(20 * PER_NODE * count)}
        store.enqueue_many([work(id, n, 50.0) for id, n in numbers.items()])
        drained(store, 60.0)
        # Then each of them does some of it, each job being run once
        seen = ran(nodes, numbers)
        judge(store, numbers, seen)
        assert {run.node for run in seen} == {one.witness for one in nodes}
        # When the queue may run only a few jobs at once, wherever that is
        store.put(Queue(name="default", max_workers=LIMIT))
        time.sleep(1.5)  # stores of several shards notice a new limit within a second
        limited = {f"limited-{n}": n for n in range(so_many(60, 600))}
        store.enqueue_many([work(id, n, 30.0) for id, n in limited.items()])
        drained(store, 120.0)
        # Then that holds at each instant, and is made use of
        seen = ran(nodes, limited)
        judge(store, limited, seen)
        assert most_at_once(seen) <= LIMIT
        assert most_at_once(seen) >= min(LIMIT, 2)


def under_way(running: Node, numbers: dict[str, int]) -> list[Run]:
    return [run for run in ran([running], numbers) if run.ended == inf]


def all_work(nodes: list[Node], store: Backend) -> bool:
    """Whether each node has run a job, after one more."""
    fresh(store, {}, 30.0)
    return all(runs(one.witness) for one in nodes)


@pytest.mark.parametrize("count", [2, 10])
def test_the_others_take_over_from_a_node_that_is_killed(servers: Servers, tmp_path: Path, count: int) -> None:
    # Given some nodes with long jobs in hand
    url = f"{servers.redis.url}?prefix=killed-{count}"
    with (
        closing(backends.open(url)) as store,
        several(url, tmp_path, count, "--lease", f"{LEASE_S:g}") as nodes,
    ):
        until("all nodes are up", lambda: all_work(nodes, store), 90.0)
        numbers = {f"long-{n}": n for n in range(PER_NODE * count)}
        store.enqueue_many([work(id, n, LONG_MS) for id, n in numbers.items()])
        until("a node is busy", lambda: any(len(under_way(one, numbers)) == PER_NODE for one in nodes), 20.0)
        victim = max(nodes, key=lambda one: len(under_way(one, numbers)))
        # When all processes of one node are killed
        family, killed_at = victim.family(), time.monotonic()
        for pid in family:
            kill(pid)
        interrupted = {run.job for run in under_way(victim, numbers)}
        assert interrupted
        # Then others begin its jobs within a lease
        rest = [one for one in nodes if one is not victim]
        until(
            "others have begun its jobs",
            lambda: interrupted <= {run.job for run in ran(rest, numbers) if run.begun > killed_at},
            2 * LEASE_S
            + LONG_MS / 1000 * PER_NODE
            + SLACK_S,  # they have to end what they have in hand, and then run one at a time
        )
        first = min(run.begun for run in ran(rest, numbers) if run.job in interrupted)
        print(f"{count} nodes: the first of {len(interrupted)} was taken over after {first - killed_at:.2f} s")
        assert first - killed_at <= LEASE_S + SLACK_S
        # And all jobs end, those of the victim being all that ran twice
        drained(store, 60.0)
        judge(store, numbers, ran(nodes, numbers), repeated=len(interrupted))
