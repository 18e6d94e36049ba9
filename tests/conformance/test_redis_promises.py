"""What an answer of the Redis storage is worth: by how the server writes to its disk, and by how many replicas have it."""

import time
from contextlib import closing

import pytest
from lab import LEASE_S, new, until

from gotask.backends import redis
from gotask.errors import BackendDown
from gotask.model import Settlement
from gotask.states import Event
from tests.servers.fixtures import Servers, StartRedis

SURVIVES = "Once enqueue has answered, a job survives"


@pytest.mark.parametrize(
    ("settings", "promise"),
    [
        (
            {"appendonly": False},
            f"{SURVIVES} any crash of GoTask, but not one of Redis, which goes back to its last snapshot: set 'appendonly yes' "
            "in redis.conf to keep it.",
        ),
        (
            {"appendonly": True, "appendfsync": "always"},
            f"{SURVIVES} a crash of GoTask or Redis and loss of power (appendfsync always).",
        ),
        (
            {"appendonly": True, "appendfsync": "everysec"},
            f"{SURVIVES} a crash of GoTask or Redis; loss of power may cost the last two seconds (appendfsync everysec).",
        ),
        (
            {"appendonly": True, "appendfsync": "no"},
            f"{SURVIVES} a crash of GoTask or Redis; loss of power may cost the last half minute (appendfsync no).",
        ),
        (
            {"appendonly": True, "appendfsync": "always", "rename_command": 'CONFIG ""'},
            f"{SURVIVES} a crash of GoTask or Redis; loss of power may cost the last two seconds (appendfsync could not be "
            "read).",
        ),
    ],
    ids=["none", "always", "everysec", "no", "unknown"],
)
def test_the_promise_is_that_of_the_server(start_redis: StartRedis, settings: dict[str, object], promise: str) -> None:
    server = start_redis(**settings)
    with closing(redis.open(server.url)) as store:
        assert store.promise == promise
    with closing(redis.open(f"{server.url}?shards=4&prefix=four")) as store:
        assert store.promise == promise


def test_the_promise_tells_of_failovers(servers: Servers) -> None:
    master = servers.sentinels.master()
    with closing(redis.open(servers.sentinels.url)) as store:
        master.command("CONFIG", "SET", "appendonly", "yes")
        assert store.promise == (
            f"{SURVIVES} a crash of GoTask or Redis; loss of power may cost the last two seconds; a failover may cost what the "
            "replica had not received (appendfsync everysec)."
        )
        master.command("CONFIG", "SET", "appendonly", "no")


def test_an_enqueue_can_wait_for_a_replica(start_redis: StartRedis) -> None:
    # Given a master with a replica
    master = start_redis()
    replica = start_redis(replicaof=f"127.0.0.1 {master.port}", repl_diskless_load="swapdb")
    until(lambda: replica.facts("INFO", "replication")["master_link_status"] == "up", "the replica is in step")
    with closing(redis.open(f"{master.url}?wait=1")) as store:
        # When something is enqueued, then the replica has it by the time that is answered
        assert store.enqueue_many([new(id="j")])[0].outcome == "created"
        assert replica.command("EXISTS", "gotask:{0}:job:j") == 1
        (job,) = store.lease({"default": 1}, "node-1", LEASE_S)
        assert store.settle_many([Settlement("j", job.lease, Event.ACK)]) == [True]
        # And without a replica it is refused in time, and the job may be there
        replica.kill()
        until(lambda: master.facts("INFO", "replication")["connected_slaves"] == "0", "it is gone")
        begun = time.monotonic()
        with pytest.raises(BackendDown) as caught:
            store.enqueue_many([new(id="k")])
        assert time.monotonic() - begun < 2.5
        assert str(caught.value) == (
            f"Only 0 of 1 replicas of {master.url} had it in time, so the outcome is unknown; look at the replicas, and try "
            "again with the same id."
        )
        assert store.get_many(["k"]) != [None]


def test_a_server_without_replicas_cannot_be_waited_for(start_redis: StartRedis) -> None:
    server = start_redis()
    with closing(redis.open(f"{server.url}?wait=1&timeout=1")) as waits, pytest.raises(BackendDown, match="Only 0 of 1"):
        waits.enqueue_many([new()])
    with closing(redis.open(f"{server.url}?wait=0")) as does_not:
        assert does_not.enqueue_many([new()])[0].outcome == "created"
