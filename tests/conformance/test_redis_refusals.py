"""What the Redis storage refuses, or cannot reach: one sentence, in time, and of the kind that says if trying again helps."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from lab import refusal

from gotask import backends
from gotask.errors import BackendDown, NotConfigured
from tests.servers.fixtures import Servers, StartProxy, StartRedis
from tests.servers.processes import free_ports, need, until


@pytest.fixture(autouse=True)
def _redis() -> None:
    need("redis-server")


def test_a_wrong_password_and_a_missing_one(start_redis: StartRedis) -> None:
    server = start_redis(requirepass="pw", login=("", "pw"))
    advice = "look at the user, the password and the ACL."
    wrong, none = (f"redis://:x@{server.address}", f"redis://{server.address}")
    assert refusal(wrong) == (
        f"Redis at redis://:***@{server.address} does not let us do this (invalid username-password pair or user is disabled); "
        + advice
    )
    assert refusal(none) == f"Redis at {none} does not let us do this (Authentication required); {advice}"
    assert "invalid username-password pair" in refusal(wrong.replace("redis", "redis+cluster", 1))


@pytest.mark.parametrize(
    ("rights", "lacks"),
    [
        ("~* &* +@all -info", "no permissions to run the 'info' command"),
        ("~* &* +@all -evalsha", "no permissions to run the 'evalsha' command"),
        ("~other:* &* +@all", "no permissions to access (one of the keys|a key)"),
    ],
)
def test_a_right_that_is_missing_is_named(start_redis: StartRedis, rights: str, lacks: str) -> None:
    server = start_redis(user=["default off", f"app on >pw {rights}", "root on >pw ~* &* +@all"], login=("root", "pw"))
    said = refusal(f"redis://app:pw@{server.address}")
    assert re.fullmatch(
        rf"(?i)Redis at redis://app:\*\*\*@{server.address} does not let us do this \(.*{lacks}.*\); look at the user, the "
        r"password and the ACL\.",
        said,
    ), said


def test_a_database_and_a_kind_of_server_that_are_not_there(start_redis: StartRedis, servers: Servers) -> None:
    server = start_redis()
    assert refusal(f"redis://{server.address}/99", NotConfigured) == (
        f"Redis at redis://{server.address}/99 has no database of that number: write another, or raise 'databases' in "
        "redis.conf."
    )
    assert refusal(f"redis+cluster://{server.address}", NotConfigured) == (
        f"Redis at redis+cluster://{server.address} is no Cluster: write the URL as redis://."
    )
    others = [f"redis://{one.address}" for one in servers.cluster.nodes if one is not servers.cluster.holder("gotask:{0}")]
    for url in others:
        assert refusal(url, NotConfigured) == f"Redis at {url} is one node of a Cluster: write the URL as redis+cluster://."


def test_a_replica(start_redis: StartRedis) -> None:
    master = start_redis()
    replica = start_redis(replicaof=f"127.0.0.1 {master.port}")
    until("the replica is in step", lambda: replica.facts("INFO", "replication")["master_link_status"] == "up")
    assert refusal(replica.url) == (
        f"Redis at {replica.url} is a replica, and takes no writes; a failover may be under way, so try again."
    )


# servers that are not there


def test_a_port_that_refuses_and_a_socket_that_is_not_there() -> None:
    (port,) = free_ports(1)
    for url in (f"redis://127.0.0.1:{port}", f"redis+cluster://127.0.0.1:{port}", "unix:///nowhere/redis.sock"):
        said = refusal(url)
        assert said.startswith(f"Redis at {url} cannot be reached (")
        assert said.endswith("); look whether it runs, and at its address.")


def test_a_name_that_is_none() -> None:
    assert refusal("redis://nowhere.invalid").startswith("Redis at redis://nowhere.invalid cannot be reached (")


def test_a_server_that_is_frozen_or_behind_a_network_that_swallows(start_redis: StartRedis, start_proxy: StartProxy) -> None:
    server = start_redis()
    proxy = start_proxy(server.address)
    store = backends.open(f"redis://{proxy.address}?timeout=0.3")
    assert store.counts() == {}
    proxy.black_hole()
    server.suspend()
    late = "did not answer within 0.3 s; the outcome is unknown, so try again with the same id."
    for url in (f"redis://{proxy.address}?timeout=0.3", f"{server.url}?timeout=0.3"):
        assert refusal(url) == f"Redis at {url.partition('?')[0]} {late}"
    begun = time.monotonic()
    with pytest.raises(BackendDown, match=r"within 0\.3 s"):
        store.counts()
    assert time.monotonic() - begun < 2.0
    store.close()


# servers that would lose jobs


@pytest.fixture
def impostor() -> Iterator[Callable[[str], str]]:
    """A server that says it is of some version, and OK to everything else; its URL."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(info: str) -> None:
        with suppress(OSError):
            while True:
                link, _ = listening.accept()
                with link:
                    while asked := link.recv(4096):
                        answer = f"${len(info)}\r\n{info}\r\n" if b"INFO\r\n" in asked.upper() else "+OK\r\n"
                        link.sendall(answer.encode() * asked.count(b"*"))

    threads: list[threading.Thread] = []

    def start(info: str) -> str:
        threads.append(threading.Thread(target=serve, args=(info,)))
        threads[-1].start()
        return f"redis://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("version", ["6.0.0", "5.0.14", "2.8"])
def test_a_server_that_is_too_old(impostor: Callable[[str], str], version: str) -> None:
    url = impostor(f"# Server\r\nredis_version:{version}\r\nmaxmemory_policy:noeviction\r\n")
    assert refusal(url, NotConfigured) == f"Redis at {url} has version {version}; GoTask needs Redis 6.2 or later, or Valkey."


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_may_evict_jobs(start_redis: StartRedis, policy: str) -> None:
    # Given such a server, also one that lets nobody ask for its configuration
    for server in (start_redis(maxmemory_policy=policy), start_redis(maxmemory_policy=policy, rename_command="CONFIG nothing")):
        assert refusal(server.url, NotConfigured) == (
            f"Redis at {server.url} may delete jobs when its memory is full (maxmemory-policy {policy}); set it to noeviction: "
            "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf."
        )
