"""Two nodes in two networks, and the cable of one is pulled: it stops, the other takes over, and late words are refused."""

import time
from contextlib import closing
from pathlib import Path

import pytest

from gotask import backends
from gotask.backends import Backend
from tests.chaos.cables import Switch, cabled
from tests.chaos.producer import Producer, fresh, work
from tests.chaos.scale import HEAL_S, so_long, so_many
from tests.chaos.witness import judge, runs, settled_by
from tests.crash.harness import Node, drained, until
from tests.servers.fixtures import StartRedis

pytestmark = pytest.mark.timeout(1800)
LEASE_S = 2.0
SLACK_S = 2.0  #: seconds that a busy machine may take on top
START_SLACK_S = 0.5  #: seconds between a worker's look at the end of its lease and the first line of the body
JOBS = 4
LONG_MS = 7000.0  #: milliseconds: those that were taken over still run when the cable is plugged in again
PULLED_S = so_long(6.0, 15.0)
REFUSED = "had been taken away before they were settled"


@pytest.mark.parametrize("_round", range(so_many(1, 5)))
def test_a_node_whose_cable_is_pulled(start_redis: StartRedis, tmp_path: Path, _round: int) -> None:
    flags = ("-c", f"{2 * JOBS}", "--processes", f"{JOBS}", "--lease", f"{LEASE_S:g}")
    with Switch() as switch:
        # Given two nodes in two networks, one of which has long jobs in hand
        server = start_redis(bind="127.0.0.1 " + switch.host, protected_mode=False)
        far = f"redis://{switch.host}:{server.port}/0"
        with (
            closing(backends.open(server.url)) as store,
            cabled(switch, "first", far, tmp_path, *flags) as first,
            cabled(switch, "second", far, tmp_path, *flags) as second,
        ):
            switch.pull("second")
            until("the first node works", lambda: works_at(store, first), 30.0)
            held = {f"held-{n}": n for n in range(JOBS)}
            store.enqueue_many([work(id, n, LONG_MS) for id, n in held.items()])
            until("it has all of them", lambda: len([run for run in runs(first.witness) if run.job in held]) == JOBS)
            switch.plug("second")
            until("the second node works", lambda: works_at(store, second), 30.0)
            with Producer(f"{server.url}?timeout=1", per_s=40.0) as load:
                until("both nodes share the load", lambda: shared(load, first, second), 30.0)
                # When the cable of the first is pulled
                switch.pull("first")
                pulled = time.monotonic()
                taken = f"held by the first, and begun by the second within {LEASE_S + SLACK_S:g} s"
                until(taken, lambda: set(held) <= {run.job for run in runs(second.witness)}, LEASE_S + SLACK_S)
                print(f"taken over {max(run.begun for run in runs(second.witness) if run.job in held) - pulled:.2f} s after")
                time.sleep(max(0.0, pulled + PULLED_S - time.monotonic()))
                # Then it begins nothing once its leases have ended, while the other works
                cut_off = [run for run in runs(first.witness) if run.begun > pulled + LEASE_S + START_SLACK_S]
                assert not cut_off
                fresh(store, {})
                # And plugged in again, both work within five seconds
                switch.plug("first")
                plugged = time.monotonic()
                until("the first works again", lambda: any(run.begun > plugged for run in runs(first.witness)), HEAL_S)
                again = min(run.begun for run in runs(first.witness) if run.begun > plugged)
                print(f"consuming again {again - plugged:.2f} s after the cable was plugged in")
                until("so does the second", lambda: any(run.begun > plugged for run in runs(second.witness)), HEAL_S)
            # And what the first has to say of its old jobs is refused; those that it held are the only ones that ran twice
            until("late endings are refused", lambda: REFUSED in first.log.read_text(), LONG_MS / 1000)
            drained(store, 60.0)
            sent = held | load.numbers
            seen = [run for run in runs(first.witness, second.witness) if run.job in sent]
            at_hand = 2 * JOBS + sum(run.begun <= pulled <= run.ended + LEASE_S for run in seen if run.job not in held)
            judge(store, sent, seen, repeated=at_hand)
            assert settled_by(store, held) == {"second": JOBS}
            assert REFUSED not in second.log.read_text(), "an ending under an old lease came before the right one"


def works_at(store: Backend, running: Node) -> bool:
    """Whether a job that is enqueued now, or one before it, was run by this node."""
    fresh(store, {}, 30.0)
    return bool(runs(running.witness))


def shared(load: Producer, *nodes: Node) -> bool:
    return all(any(run.job in load.numbers for run in runs(one.witness)) for one in nodes)
