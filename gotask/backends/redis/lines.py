"""Ways to a Redis: to one server (named outright, or by Sentinels), or to a Cluster. All of redis-py is behind this page.

One server is reached over connections of redis-py that are kept here: its own pool and client cost more per call than Redis
takes to answer. A line is shared by threads; in a forked child it starts with no connections.
"""

import os
import select
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from typing import Any, Final, Protocol, cast

from hiredis import pack_command
from redis import Redis, RedisCluster, Sentinel
from redis import exceptions as said
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.cluster import ClusterNode
from redis.connection import AbstractConnection, ConnectionPool
from redis.retry import Retry

from gotask.backends.redis.address import Address

CONNECT_S: Final = 1.0  #: seconds for a connection to be made
MADE_MOST: Final = 2**31  #: connections that redis-py may make: it counts ours and never sees one end, and stops at 100
WAIT_SHARE: Final = 0.8  #: part of a call's deadline that replicas may take
AHEAD: Final = 1  #: commands sent before the answer to the one before them is read
#: keeps redis-py, by the options of its version, from naming itself: two calls for each connection, and a right of its own
UNNAMED: Final[dict[str, Any]] = dict.fromkeys(
    ("driver_info",) if "driver_info" in signature(AbstractConnection).parameters else ("lib_name", "lib_version")
)
Info = dict[str, Any]
Command = Sequence[Any]


class Line(Protocol):
    """All methods raise redis-py's exceptions, or OSError."""

    def run(self, commands: Iterable[Command], replicas: int = 0) -> Iterator[Any]:
        """Answers of commands in their order as they come, each an exception where Redis refused it.

        With `replicas`, a command is answered once so many have what it wrote, or by TooFewReplicas after a while.
        """
        ...

    def infos(self) -> list[Info]:
        """INFO of every server that takes writes."""
        ...

    def fsync(self) -> str | None:
        """The setting `appendfsync`, if it may be read."""
        ...

    def ear(self) -> PubSub:
        """A connection of its own that can subscribe."""
        ...

    def forget(self) -> None:
        """Drop what may lead to a server that is gone."""
        ...

    def close(self) -> None: ...


class TooFewReplicas(Exception):
    """The command was done, and fewer replicas than asked for (the number is in `args`) had it in time."""


def open_line(address: Address) -> Line:
    """The line to an address; no I/O happens before its first use."""
    return ClusterLine(address) if address.kind == "cluster" else ServerLine(address)


def _options(address: Address) -> dict[str, Any]:
    return {
        "socket_timeout": address.timeout,
        "socket_connect_timeout": min(address.timeout, CONNECT_S),
        "retry": Retry(NoBackoff(), 0),  # whoever calls knows better whether to try again
        "max_connections": MADE_MOST,
        "protocol": 2,
        **UNNAMED,
        **address.login,
    }


class Link:
    """A connection of redis-py that was made, and a quick way to see whether it still is one."""

    def __init__(self, connection: AbstractConnection) -> None:
        connection.connect()
        self.connection = connection
        self._ears = select.poll()  # redis-py's own look costs ten times as much
        self._ears.register(cast(Any, connection)._sock, select.POLLIN)

    def is_good(self) -> bool:
        """Whether nothing came that nobody asked for; else Redis has said goodbye."""
        return not self._ears.poll(0)


class ServerLine:
    """To one server at a time."""

    def __init__(self, address: Address) -> None:
        self._client = _client(address)
        self._pool: ConnectionPool = self._client.connection_pool
        self._free: list[Link] = []
        self._patience_ms = int(address.timeout * WAIT_SHARE * 1000)
        self._process = os.getpid()

    def run(self, commands: Iterable[Command], replicas: int = 0) -> Iterator[Any]:
        link = self._take()
        connection = link.connection
        try:
            waiting = 0
            for command in commands:  # made while Redis works on the one before
                packed = [pack_command(tuple(command))]
                if replicas:  # WAIT speaks of what its own connection wrote
                    packed.append(self._wait_for(replicas))
                connection.send_packed_command(packed, check_health=False)
                waiting += 1
                if waiting > AHEAD:
                    waiting -= 1
                    yield _answer(connection, replicas)
            for _ in range(waiting):
                yield _answer(connection, replicas)
        except BaseException:
            connection.disconnect()
            raise
        self._free.append(link)

    def _wait_for(self, replicas: int) -> bytes:
        words: tuple[Any, ...] = ("WAIT", replicas, self._patience_ms)
        return pack_command(words)

    def _take(self) -> Link:
        """A connection that is free and still connected, else a new one."""
        if self._process != os.getpid():
            self._free, self._process = [], os.getpid()
        while self._free:
            try:
                link = self._free.pop()
            except IndexError:  # another thread was quicker
                break
            if link.is_good():
                return link
            link.connection.disconnect()
        return Link(cast(AbstractConnection, self._pool.make_connection()))

    def infos(self) -> list[Info]:
        return [self._client.info()]

    def fsync(self) -> str | None:
        return _fsync(self._client)

    def ear(self) -> PubSub:
        return cast(PubSub, self._client.pubsub())

    def forget(self) -> None:
        free, self._free = self._free, []
        for link in free:
            link.connection.disconnect()
        self._pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        self.forget()
        self._client.close()


def _answer(link: Any, replicas: int) -> Any:
    """The next answer; what Redis itself refused is an answer too, and leaves the connection as good as it was."""
    try:
        answer = link.read_response()
    except said.ResponseError as refusal:
        answer = refusal
    have = link.read_response() if replicas else 0
    return TooFewReplicas(have) if have < replicas and not isinstance(answer, Exception) else answer


def _client(address: Address) -> Redis:
    options = _options(address)
    if address.kind == "sentinel":
        secure = {name: value for name, value in options.items() if name.startswith("ssl")}
        asking = {
            name: options[name] for name in ("socket_timeout", "socket_connect_timeout", "retry", "protocol", *UNNAMED)
        } | address.sentinel_login
        sentinel = Sentinel(address.hosts, sentinel_kwargs=asking | secure)
        return cast(Redis, sentinel.master_for(address.service, **options))
    if "path" in options:
        return Redis(unix_socket_path=options.pop("path"), **options)
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **options)


def _fsync(client: Redis) -> str | None:
    try:
        found = cast(dict[str, str], client.config_get("appendfsync"))
    except said.ResponseError:  # managed servers hide it, and so may an ACL
        return None
    return found.get("appendfsync")


def _own_words(error: BaseException) -> BaseException:
    """What a server said, of an exception that only tells that some did."""
    inner = error.__cause__ or error.__context__
    return error if inner is None or isinstance(error, said.RedisError | OSError) else _own_words(inner)


class ClusterLine:
    """To the master that holds a key's slot. redis-py's client of a Cluster follows where slots move."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._made: RedisCluster | None = None
        self._process = os.getpid()

    def _cluster(self) -> RedisCluster:
        if self._process != os.getpid():
            self._made, self._process = None, os.getpid()
        made = self._made
        if made is None:
            nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
            try:
                made = self._made = RedisCluster(startup_nodes=nodes, **_options(self._address))
            except said.RedisClusterException as error:
                raise _own_words(error) from None
        return made

    def run(self, commands: Iterable[Command], replicas: int = 0) -> Iterator[Any]:
        assert not replicas, "gotask.backends.redis.address refuses that"
        return (self._one(command) for command in commands)

    def _one(self, command: Command) -> Any:
        try:
            return self._cluster().execute_command(*command)
        except (said.NoScriptError, said.OutOfMemoryError) as refusal:
            return refusal

    def _servers(self) -> Sequence[Redis]:
        cluster = self._cluster()
        return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]

    def infos(self) -> list[Info]:
        return [server.info() for server in self._servers()]

    def fsync(self) -> str | None:
        found = {_fsync(server) for server in self._servers()}
        return next(iter(found)) if len(found) == 1 else None

    def ear(self) -> PubSub:
        return self._cluster().pubsub()

    def forget(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made.close()

    def close(self) -> None:
        self.forget()
