"""What only the Redis storage has: a server that forgets, an end that somebody waits for, and forks."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import pairwise

import msgspec
import pytest
from lab import LEASE_S, Clock, new, until

from gotask import GoTask
from gotask.backends import redis
from gotask.backends.redis.watch import AWAITED_S
from gotask.errors import BackendDown
from gotask.model import Filter, Job, Queue, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import Servers, StartRedis
from tests.servers.processes import free_ports
from tests.servers.redis import Redis


@pytest.fixture
def server(start_redis: StartRedis) -> Redis:
    return start_redis(appendonly=True, appendfsync="always")


@pytest.fixture
def store(server: Redis) -> Iterator[redis.Redis]:
    with closing(redis.open(server.url)) as made:
        yield made


def running(store: redis.Redis, id: str = "j") -> Job:
    store.enqueue_many([new(id=id)])
    (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
    return job


def end(store: redis.Redis, *jobs: Job) -> None:
    assert store.settle_many([Settlement(job.id, job.lease, Event.ACK, result=b"7") for job in jobs]) == [True] * len(jobs)


def calls(server: Redis) -> dict[str, int]:
    """How often each command was called so far, by clients and by the script."""
    found = server.facts("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): int(text.split(",")[0].removeprefix("calls=")) for name, text in found.items()}


def test_a_server_that_forgot_the_script_is_told_it_again(store: redis.Redis, server: Redis) -> None:
    job = running(store)
    server.command("SCRIPT", "FLUSH")
    assert store.counts() == {("default", State.RUNNING): 1}
    server.command("SCRIPT", "FLUSH")
    end(store, job)
    server.command("SCRIPT", "FLUSH")
    answers = store.enqueue_many([new(id=f"n{n}") for n in range(1500)])
    assert [answer.outcome for answer in answers] == ["created"] * 1500
    server.command("SCRIPT", "FLUSH")
    assert len(store.lease({"default": 1500}, "node-1", LEASE_S)) == 1500


def test_a_restart_goes_unnoticed_by_who_did_not_call_meanwhile(store: redis.Redis, server: Redis) -> None:
    # Given a job that runs, and a listener
    job = running(store)
    watch = store.watch(["job:j", "queue:other"])
    # When the server is killed and comes back
    server.kill()
    server.start()
    # Then all is as it was, and the listener is sent to look for itself
    assert store.get_many(["j"])[0] == job
    end(store, job)
    assert watch.wait(10.0) == {"job:j", "queue:other"}
    watch.close()


def test_a_lease_number_never_comes_back_though_redis_lost_it(start_redis: StartRedis) -> None:
    # Given a server that keeps nothing, and a lease
    server = start_redis()
    with closing(redis.open(server.url)) as store:
        before = running(store).lease
        # When it comes back empty, then numbers go on above
        server.kill()
        server.start()
        assert running(store).lease > before


# whoever waits


def test_an_end_that_nobody_waits_for_is_not_told(store: redis.Redis, server: Redis) -> None:
    # Given jobs that run, and somebody who waits for one of them
    jobs = [running(store, f"j{n}") for n in range(20)]
    watch = store.watch(["job:j19"])
    before = calls(server).get("publish", 0)
    # When the others end, then nothing is published; and at the end of that one, once
    end(store, *jobs[:19])
    assert calls(server).get("publish", 0) == before
    end(store, jobs[19])
    assert watch.wait(10.0) == {"job:j19"}
    assert calls(server)["publish"] == before + 1
    watch.close()


def test_a_result_is_waited_for_without_asking(store: redis.Redis, server: Redis) -> None:
    app = GoTask(server.url)

    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    handle = add.delay(a=3, b=4)
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(handle.result(timeout=30)))
    waiter.start()
    until(lambda: server.command("EXISTS", "gotask:{0}:waited") == 1, "it is noted that somebody waits")
    before = calls(server)
    threading.Event().wait(1.0)
    after = calls(server)
    assert after["evalsha"] - before["evalsha"] <= 1  # it may still have been about to look
    end(store, *store.lease({"default": 1}, "node-1", LEASE_S))
    ended = time.monotonic()
    waiter.join()
    assert results == [7]
    assert time.monotonic() - ended < 1.0
    app.close()


def test_a_waiter_that_died_leaves_nothing(server: Redis) -> None:
    # Given a process that waited for jobs, and was killed
    clock = Clock()
    with closing(redis.open(server.url, clock)) as store:
        store.enqueue_many([new(id=f"j{n}", delay=86_400.0) for n in range(5)])
        pid = os.fork()
        if pid == 0:
            store.watch([f"job:j{n}" for n in range(5)])
            os._exit(0)
        os.waitpid(pid, 0)
        assert server.command("ZCARD", "gotask:{0}:waited") == 5
        # When its notes have expired
        clock.now += AWAITED_S + 1
        store.tick()
        # Then they are gone
        assert server.command("EXISTS", "gotask:{0}:waited") == 0


# processes and pages


def test_a_forked_child_and_its_parent_both_go_on(store: redis.Redis, server: Redis) -> None:
    # Given a store that is in use, and has connections
    store.enqueue_many([new(id="before")])
    watch = store.watch(["queue:default"])
    # When the process forks, and both sides use it, at first at the same time
    server.command("CLIENT", "PAUSE", 500, "ALL")
    pid = os.fork()
    if pid == 0:
        with suppress(Exception):
            found = store.get_many(["before"])[0]
            ok = all(store.enqueue_many([new(id=f"child{n}")])[0].outcome == "created" for n in range(200))
            os._exit(0 if ok and found else 1)
        os._exit(1)
    for n in range(200):
        assert store.enqueue_many([new(id=f"parent{n}")])[0].outcome == "created"
    _, status = os.waitpid(pid, 0)
    # Then neither got the other's answers, and bells ring
    assert status == 0
    assert store.counts() == {("default", State.PENDING): 401}
    assert watch.wait(5.0) == {"queue:default"}
    watch.close()


def test_a_forked_child_uses_a_cluster(servers: Servers) -> None:
    with closing(redis.open(f"{servers.cluster.url}?prefix=fork&shards=6")) as store:
        store.enqueue_many([new() for _ in range(20)])
        pid = os.fork()
        if pid == 0:
            store.enqueue_many([new() for _ in range(20)])
            os._exit(0)
        store.enqueue_many([new() for _ in range(20)])
        assert os.waitpid(pid, 0)[1] == 0
        assert store.counts() == {("default", State.PENDING): 60}


@pytest.mark.parametrize("shards", [1, 4])
def test_pages_under_thousands_of_jobs(server: Redis, shards: int) -> None:
    with closing(redis.open(f"{server.url}?shards={shards}")) as store:
        # Given many jobs, of which a few are of a kind
        store.put(Queue(name="rare"))
        ids = []
        for n in range(30):
            batch = [new(type=f"t{n % 3}", queue="rare" if n % 10 == 0 and at == 7 else "default") for at in range(200)]
            ids += [(answer.job.id, answer.job.queue) for answer in store.enqueue_many(batch)]
        # When they are paged through, then each is there once, the newest first
        rare = {id for id, queue in ids if queue == "rare"}
        for filter, wanted in ((Filter(limit=500), {id for id, _ in ids}), (Filter(queue="rare", limit=2), rare)):
            seen: list[Job] = []
            while True:
                page = store.find(filter)
                assert len(page.jobs) <= filter.limit
                seen += page.jobs
                if page.next_cursor is None:
                    break
                filter = msgspec.structs.replace(filter, cursor=page.next_cursor)
            assert len(seen) == len(wanted)
            assert {job.id for job in seen} == wanted
            assert all(a.created_at >= b.created_at for a, b in pairwise(seen))


def test_many_stores_that_are_opened_and_closed_leave_no_connection(server: Redis) -> None:
    def clients() -> int:
        return int(server.facts("INFO", "clients")["connected_clients"])

    before = clients()
    for _ in range(20):
        with closing(redis.open(server.url)) as store:
            store.counts()
            store.watch(["queue:default"]).close()
    until(lambda: clients() <= before, "all connections are closed")


def test_a_closed_store_says_so() -> None:
    (port,) = free_ports(1)
    store = redis.open(f"redis://127.0.0.1:{port}")
    store.close()
    store.close()
    with pytest.raises(BackendDown) as caught:
        store.counts()
    assert str(caught.value) == f"The storage redis://127.0.0.1:{port} was closed; open it again."
