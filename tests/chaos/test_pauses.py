"""A node that sleeps for longer than its leases: another takes its jobs over, and what it says when it wakes is refused."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.states import State
from tests.chaos.producer import fresh, work
from tests.chaos.scale import so_many
from tests.chaos.witness import judge, runs, settled_by
from tests.crash.harness import Node, drained, fetch, kill, node, until
from tests.servers.chaosproxy import ChaosProxy
from tests.servers.fixtures import Servers

pytestmark = pytest.mark.timeout(1800)
LEASE_S = 2.0
SLACK_S = 2.0  #: seconds that a busy machine may take on top
JOBS = 4
#: milliseconds that a body takes: those of the second node still run when the first one wakes, so that only the lease's number
#: tells a right ending from a late one
LONG_MS = 5500.0
REFUSED = "had been taken away before they were settled"


def dispatcher_of(running: Node) -> list[int]:
    return [child.pid for child in running.of("dispatcher")]


@contextmanager
def asleep(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            kill(pid, signal.SIGCONT)


@contextmanager
def two_nodes(storage: str, folder: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes, each with a folder of its own, as on two machines: neither has any proof of the other's death."""
    # a process for each job: after a lapse each is a suspect, and runs alone in its process
    flags = ("-c", f"{2 * JOBS}", "--processes", f"{JOBS}", "--lease", f"{LEASE_S:g}")
    for name in ("first", "second"):
        (folder / name).mkdir(mode=0o700)
    with (
        node(storage, folder / "first", *flags, "--worker-id", "first") as first,
        node(storage, folder / "second", *flags, "--worker-id", "second") as second,
    ):
        yield first, second


@pytest.mark.parametrize("who", [dispatcher_of, Node.family], ids=["dispatcher", "node"])
@pytest.mark.parametrize("round", range(so_many(1, 10)))
def test_who_wakes_late_is_refused(servers: Servers, tmp_path: Path, who: Callable[[Node], list[int]], round: int) -> None:
    # Given a node with jobs in hand, and another one that has none because it slept when they came
    prefix = f"pause-{who.__name__}-{round}"
    with (
        ChaosProxy(servers.redis.address) as proxy,
        closing(backends.open(f"{servers.redis.url}?prefix={prefix}")) as store,
        two_nodes(f"{proxy.before(servers.redis.url)}?prefix={prefix}", tmp_path) as (first, second),
    ):
        fresh(store, {}, 30.0)
        numbers = {f"{prefix}-{n}": n for n in range(JOBS)}
        begin(store, numbers, first, second)
        # When that sleeps for three leases, in whole or in part
        with asleep(who(first)):
            slept = time.monotonic()
            until("the second node has all", lambda: begun_at(second, numbers) is not None, LEASE_S + SLACK_S + 5.0)
            taken_over = (begun_at(second, numbers) or 0.0) - slept
            print(f"taken over after {taken_over:.2f} s, with a lease of {LEASE_S:g} s")
            time.sleep(max(0.0, slept + 3 * LEASE_S - time.monotonic()))
            assert {job.status for job in fetch(store, list(numbers)).values()} == {State.RUNNING}
        # Then the other has begun its jobs within a lease
        assert taken_over <= LEASE_S + SLACK_S
        # And when it wakes, what it has to say of them is refused and logged, and changes nothing
        until("the late endings are refused", lambda: REFUSED in first.log.read_text(), 15.0)
        drained(store, 30.0)
        seen = [run for run in runs(first.witness, second.witness) if run.job in numbers]
        assert judge(store, numbers, seen, repeated=JOBS) == JOBS
        assert settled_by(store, numbers) == {"second": JOBS}
        assert REFUSED not in second.log.read_text(), "an ending under an old lease came before the right one"
        # And it goes on working
        fresh(store, {})
        until("both work", lambda: works(store, first), 20.0)


def begin(store: Backend, numbers: dict[str, int], first: Node, second: Node) -> None:
    """Have the first node begin these jobs, each with a slot of its own."""
    with asleep(second.family()):
        store.enqueue_many([work(id, n, LONG_MS) for id, n in numbers.items()])
        until("the first node has all", lambda: begun_at(first, numbers) is not None, 10.0)


def begun_at(running: Node, numbers: dict[str, int]) -> float | None:
    """When the last of these jobs was begun at a node; None as long as one was not."""
    begun = {run.job: run.begun for run in runs(running.witness) if run.job in numbers}
    return max(begun.values()) if len(begun) == len(numbers) else None


def works(store: Backend, running: Node) -> bool:
    before = len(runs(running.witness))
    batch = [work(f"again-{time.monotonic_ns()}-{n}", n, 20.0) for n in range(40)]
    store.enqueue_many(batch)
    drained(store, 20.0)
    return len(runs(running.witness)) > before
