"""The master dies under load and a replica is promoted by Sentinels: nodes and producers follow, by the URL they have."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gotask import backends
from gotask.errors import BackendDown
from tests.chaos.producer import Producer, fresh, work
from tests.chaos.scale import HEAL_S, so_many
from tests.chaos.witness import judge, runs
from tests.crash.harness import drained, fetch, node, until
from tests.servers.fleets import FAILOVER_S, Sentinels
from tests.servers.redis import Redis

pytestmark = pytest.mark.timeout(3600)
UNSEEN_S = 2.0  #: seconds of accepted jobs that a replica may lag behind, on a machine that is busy


def killed(fleet: Sentinels) -> Redis:
    return fleet.failover()


def frozen(fleet: Sentinels) -> Redis:
    """A master that stands still is replaced as a dead one is; it comes back believing that it is still the one."""
    old = fleet.master()
    (new,) = (server for server in fleet.servers if server is not old)
    old.suspend()
    until("the replica is the master", lambda: new.facts("INFO", "replication").get("role") == "master", FAILOVER_S)
    return new


@pytest.mark.parametrize("loss", [killed, frozen], ids=lambda loss: loss.__name__)
def test_a_replica_takes_over_and_all_follow(tmp_path: Path, loss: Callable[[Sentinels], Redis]) -> None:
    # Given a master with a replica, a producer and a node at work, which know only the Sentinels
    with Sentinels(tmp_path / "fleet", appendonly=True) as fleet, node(fleet.url, tmp_path, "-c", "4") as running:
        with closing(backends.open(fleet.url)) as store:
            fresh(store, {}, 30.0)
        took = []
        after: dict[str, int] = {}
        with Producer(f"{fleet.url}?timeout=1") as load:
            for _ in range(so_many(1, 15)):
                time.sleep(1.0)
                # When the master is lost
                old, gone_at = fleet.master(), time.monotonic()
                new = loss(fleet)
                promoted_at = time.monotonic()
                # Then a job that is enqueued at the new one runs within five seconds of its promotion
                with closing(backends.open(new.url)) as store:
                    took.append(fresh(store, after))
                    # And once more what is enqueued by anybody
                    accepted = len(load.accepted_at)
                    until("the producer goes on", lambda accepted=accepted: len(load.accepted_at) > accepted, HEAL_S)
                    if loss is frozen:
                        old.resume()
                    fleet.rejoin()
                    fresh(store, after)
                lost_between = (gone_at - UNSEEN_S, promoted_at)
        print(f"consuming again {', '.join(f'{seconds:.2f}' for seconds in took)} s after the promotion")
        with closing(backends.open(fleet.url)) as store:
            drained(store, 60.0)
            # And what is lost was accepted just before, and had not reached the replica
            lost = set(load.numbers) - set(fetch(store, list(load.numbers)))
            print(f"{len(lost)} of {len(load.numbers)} accepted jobs were never replicated")
            if len(took) == 1:
                assert all(lost_between[0] <= load.accepted_at[id] <= lost_between[1] for id in lost)
            # And all others have ended well, once; a run may be repeated whose ending had not reached the replica
            kept = {id: n for id, n in (load.numbers | after).items() if id not in lost}
            seen = [run for run in runs(running.witness) if run.job in kept]
            print(f"{judge(store, kept, seen, repeated=len(took) * 100)} runs were repeated")
            assert load.failures


def test_with_wait_an_accepted_job_is_never_lost(tmp_path: Path) -> None:
    # Given a producer that waits for a replica with each enqueue
    with Sentinels(tmp_path / "fleet", appendonly=True) as fleet, node(fleet.url, tmp_path, "-c", "4") as running:
        url = f"{fleet.url}?timeout=1&wait=1"
        with closing(backends.open(fleet.url)) as store:
            fresh(store, {}, 30.0)
        with Producer(url) as load:
            for _ in range(so_many(1, 15)):
                accepted = len(load.numbers)
                until("jobs are accepted", lambda accepted=accepted: len(load.numbers) > accepted + 100)
                # When the master is killed, and later comes back as a replica
                fleet.failover()
                fleet.rejoin()
        # Then each job that was accepted has ended
        with closing(backends.open(fleet.url)) as store:
            drained(store, 60.0)
            seen = [run for run in runs(running.witness) if run.job in load.numbers]
            judge(store, load.numbers, seen, repeated=so_many(1, 15) * 100)
        # And none was accepted while the only replica was away
        old = fleet.master()
        (replica,) = (server for server in fleet.servers if server is not old)
        replica.suspend()
        with closing(backends.open(url)) as waiting, closing(backends.open(fleet.url)) as hasty:
            with pytest.raises(BackendDown, match="0 of 1 replicas"):
                waiting.enqueue_many([work("waiting", 1, 0.0)])
            assert hasty.enqueue_many([work("hasty", 1, 0.0)])[0].outcome == "created"
        replica.resume()
