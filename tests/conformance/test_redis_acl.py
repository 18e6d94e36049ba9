"""The user with few rights of docs/redis.md: it can do all that GoTask does, and nothing else."""

import re
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from lab import LEASE_S, new, refusal
from redis.exceptions import NoPermissionError
from test_redis_keys import Place, end, live

from gotask.backends import redis
from gotask.backends.redis import script
from gotask.errors import BackendDown
from gotask.model import Filter, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import StartRedis
from tests.servers.fleets import Cluster, Sentinel
from tests.servers.processes import until
from tests.servers.redis import Redis

PAGE: Final = (Path(__file__).parents[2] / "docs/redis.md").read_text()
RULES: Final = re.findall(r"^user gotask on >a-long-password (.+)$", PAGE, re.MULTILINE)[0]
ROOT: Final = "root on >root ~* &* +@all"
LOGIN: Final = ("gotask", "pw")
OUTSIDE: Final = {"evalsha", "eval", "info", "ping", "subscribe"}


def users(more: str = "") -> list[str]:
    return ["default off", ROOT, f"gotask on >pw {RULES} {more}"]


def seen_from(server: Redis, login: tuple[str, str]) -> Redis:
    server.login = login
    return server


@pytest.fixture
def server(start_redis: StartRedis) -> Redis:
    return start_redis(user=users(), login=("root", "root"), appendonly=True)


def url(server: Redis, options: str = "") -> str:
    return f"redis://gotask:pw@{server.address}{options}"


def test_the_rights_are_the_commands_of_the_script_and_those_around_it() -> None:
    inside = {word.lower() for word in re.findall(r"(?:call|in_pieces)\('([A-Z]+)'", script.TEXT)}
    assert set(re.findall(r"\+(\S+)", RULES)) == inside | OUTSIDE
    assert RULES.startswith("resetkeys ~gotask:* resetchannels &gotask:* -@all +evalsha ")


@pytest.mark.parametrize("shards", [1, 4])
def test_all_that_can_happen_happens_with_these_rights(server: Redis, shards: int) -> None:
    # Given a store that is used by that user alone
    place = Place(server, shards)
    place.store.close()
    with closing(redis.open(url(server, f"?shards={shards}"), place.clock)) as place.store:
        # When jobs go every way there is
        live(place)
        end(place)
        # Then nothing was refused
        assert place.store.find(Filter(status=State.FAILED)).jobs == []
        watch = place.store.watch(["queue:default"])
        place.store.enqueue_many([new()])
        assert watch.wait(10.0) == {"queue:default"}
        assert watch._ear is not None
        watch._ear.ping()
        assert watch.wait(0.1) == set()
        watch.close()
        assert server.command("ACL", "LOG") == []
        # And only for its promise something is tried that it may not do
        assert "appendfsync could not be read" in place.store.promise
        assert [dict(zip(entry[::2], entry[1::2], strict=True))["object"] for entry in server.command("ACL", "LOG")] == [
            "config|get"
        ]


@pytest.mark.parametrize(
    "words",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("SCRIPT", "FLUSH"),
        ("GET", "other:{0}:seq"),
        ("HGETALL", "other:{0}:job:j"),
        ("SET", "elsewhere", "x"),
        ("PUBLISH", "other:{0}:queue:default", ""),
        ("SUBSCRIBE", "other:{0}:queue:default"),
        ("EVAL", "return redis.call('GET', 'other:{0}:seq')", 0),
        ("EVAL", "return redis.call('FLUSHALL')", 0),
        ("EVAL", "return redis.call('KEYS', '*')", 0),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_what_is_not_needed_is_refused(server: Redis, words: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"(?i)no permissions|can't run this command|can't access") as caught:
        seen_from(server, LOGIN).command(*words)
    assert isinstance(caught.value, NoPermissionError) or "script" in str(caught.value)


def test_another_prefix_is_refused(server: Redis) -> None:
    assert re.search("(?i)no permissions to access (one of the keys|a key)", refusal(url(server, "?prefix=other")))


def test_what_is_optional_needs_its_right(start_redis: StartRedis) -> None:
    # Given a replica, and users with and without
    master = start_redis(user=users("+config|get +wait +select"), login=("root", "root"), appendonly=True)
    replica = start_redis(replicaof=f"127.0.0.1 {master.port}", masteruser="root", masterauth="root")
    until("the replica is in step", lambda: replica.facts("INFO", "replication")["master_link_status"] == "up")
    with closing(redis.open(url(master, "/2?wait=1"))) as store:
        assert store.enqueue_many([new()])[0].outcome == "created"
        assert "(appendfsync everysec)" in store.promise
    master.command("ACL", "SETUSER", "gotask", "-wait", "-select")
    assert "'select' command" in refusal(url(master, "/2"))
    with closing(redis.open(url(master, "?wait=1"))) as store, pytest.raises(BackendDown, match="'wait' command"):
        store.enqueue_many([new()])


def test_a_cluster_needs_two_more(tmp_path: Path) -> None:
    with Cluster(tmp_path, masters=2, user=users("+cluster|slots +command"), login=("root", "root")) as cluster:
        at = f"{cluster.url.replace('//', '//gotask:pw@')}?shards=4"
        with closing(redis.open(at)) as store:
            store.enqueue_many([new() for _ in range(20)])
            jobs = store.lease({"default": 20}, "node-1", LEASE_S)
            watch = store.watch([f"job:{jobs[0].id}"])
            assert store.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs]) == [True] * 20
            assert watch.wait(10.0)
            watch.close()
        for node in cluster.nodes:
            assert node.command("ACL", "LOG") == []
        for node in cluster.nodes:
            node.command("ACL", "SETUSER", "gotask", "-cluster|slots")
        assert "'cluster|slots' command" in refusal(at)


def test_sentinels_need_one_of_their_own(start_redis: StartRedis, tmp_path: Path) -> None:
    server = start_redis(user=users(), login=("root", "root"))
    rules = [f"monitor shop 127.0.0.1 {server.port} 1", "auth-user shop root", "auth-pass shop root"]
    own = ["default off", ROOT, "gotask on >spw -@all +sentinel|masters"]
    with Sentinel(tmp_path / "sentinel", sentinel=rules, user=own, login=("root", "root")) as sentinel:
        until("the Sentinel knows the master", lambda: "status=ok" in sentinel.facts("INFO", "sentinel").get("master0", ""))
        options = "sentinel_username=gotask&sentinel_password=spw"
        with closing(redis.open(f"redis+sentinel://gotask:pw@{sentinel.address}/shop?{options}")) as store:
            assert store.enqueue_many([new()])[0].outcome == "created"
        assert sentinel.command("ACL", "LOG") == []
