"""Redis is killed and started again under load: what it had answered it still has, and nodes go on by themselves."""

import time
from pathlib import Path
from statistics import median

import pytest

from gotask.backends import Backend
from tests.chaos.producer import Producer, fresh
from tests.chaos.scale import so_many
from tests.chaos.site import at_work
from tests.chaos.witness import judge, runs
from tests.crash.harness import drained, fetch
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

pytestmark = pytest.mark.timeout(1800)
ALWAYS_KILLS = so_many(4, 50)
EVERYSEC_KILLS = so_many(2, 20)
LOADED = "DB loaded from append only file"
UNSYNCED_S = 2.0  #: seconds of writes that `everysec` may keep from the system, while its disk is slower than its clients


def kill_and_start(server: Redis, store: Backend, numbers: dict[str, int]) -> float:
    """Seconds from when the server answers again until workers have run a job that was enqueued then."""
    time.sleep(0.5)
    server.kill()
    server.start()
    return fresh(store, numbers)


def test_a_server_that_syncs_always_loses_nothing(start_redis: StartRedis, tmp_path: Path) -> None:
    # Given a server that answers once what it did is on its disk, a producer and a node at work
    server = start_redis(appendonly=True, appendfsync="always")
    numbers: dict[str, int] = {}
    with at_work(server, tmp_path, numbers) as (running, store):
        with Producer(f"{server.url}?timeout=1") as load:
            # When it is killed again and again
            took = [kill_and_start(server, store, numbers) for _ in range(ALWAYS_KILLS)]
        # Then workers run jobs within five seconds each time
        print(f"{ALWAYS_KILLS} kills: p50 {median(took):.2f} s, most {max(took):.2f} s; {len(load.numbers)} accepted")
        drained(store, 60.0)
        # And each accepted job has ended, once
        judge(store, numbers | load.numbers, runs(running.witness))
        assert server.log.count(LOADED) >= ALWAYS_KILLS


def test_a_server_that_syncs_each_second_loses_no_more_than_it_says(start_redis: StartRedis, tmp_path: Path) -> None:
    # Given a server that leaves it to the system to write to the disk, which outlives the server's process
    server = start_redis(appendonly=True, appendfsync="everysec")
    numbers: dict[str, int] = {}
    killed: list[float] = []
    with at_work(server, tmp_path, numbers) as (running, store):
        with Producer(f"{server.url}?timeout=1") as load:
            # When its process is killed
            for _ in range(EVERYSEC_KILLS):
                kill_and_start(server, store, numbers)
                killed.append(time.monotonic())
        drained(store, 60.0)
        # Then what is lost, if anything, was accepted less than two seconds before
        sent = numbers | load.numbers
        lost = set(sent) - set(fetch(store, list(sent)))
        old = [id for id in lost if not any(0 <= at - load.accepted_at[id] < UNSYNCED_S for at in killed)]
        print(f"{EVERYSEC_KILLS} kills: {len(lost)} of {len(sent)} lost")
        assert not old, f"{len(old)} jobs are lost that had been accepted long before a kill"
        # And the rest has ended, each once: a run repeats only where its ending was among what was lost
        kept = {id: n for id, n in sent.items() if id not in lost}
        judge(store, kept, [run for run in runs(running.witness) if run.job in kept], repeated=len(lost))
        assert server.log.count(LOADED) >= EVERYSEC_KILLS


def test_a_server_that_forgets_its_script_is_told_again(start_redis: StartRedis, tmp_path: Path) -> None:
    # Given a node at work
    server = start_redis()
    numbers: dict[str, int] = {}
    with at_work(server, tmp_path, numbers) as (running, store), Producer(server.url) as load:
        # When an administrator flushes scripts, as a restart does
        for _ in range(5):
            server.command("SCRIPT", "FLUSH")
            fresh(store, numbers)
        load.stop()
        # Then nobody notices
        drained(store, 30.0)
        sent = numbers | load.numbers
        judge(store, sent, runs(running.witness))
        assert not load.failures
