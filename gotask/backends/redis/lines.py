"""Ways to a Redis: to one server (named outright, or by Sentinels) here, to a Cluster in cluster.py; behind them is redis-py.

One server is reached over connections of redis-py that are kept here: its own pool and client cost more per call than Redis
takes to answer. A line is shared by threads; in a forked child it starts with no connections.
"""

import os
import select
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any, Final, Protocol, cast

from hiredis import pack_command
from redis import Redis, Sentinel
from redis import exceptions as said
from redis.backoff import NoBackoff
from redis.client import PubSub
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
ASKING: Final = {"socket_timeout", "socket_connect_timeout", "retry", "protocol", *UNNAMED}  #: what Sentinels are asked with
Info = dict[str, Any]
Command = Sequence[Any]


class Line(Protocol):
    """All methods raise redis-py's exceptions, or OSError."""

    def run(self, commands: Iterable[Command], replicas: int = 0) -> Iterator[Any]:
        """Answers of commands in their order as they come, each an exception where Redis refused it.

        With `replicas`, a command is answered once so many have what it wrote, or by TooFewReplicas after a while.
        """
        ...

    def place(self, root: str, /) -> str:
        """The name of the server that has a root now, as far as is known."""
        ...

    def info(self, root: str, /) -> Info:
        """INFO of the server that has a root."""
        ...

    def infos(self) -> list[Info]:
        """INFO of every server that takes writes, and answers."""
        ...

    def fsync(self) -> str | None:
        """The setting `appendfsync`, if it may be read."""
        ...

    def ear(self) -> PubSub:
        """A connection of its own that can subscribe."""
        ...

    def forget(self, error: Exception, /) -> None:
        """Drop what may lead to a server that is gone, as `error` was raised. Calls under way are not disturbed."""
        ...

    def close(self) -> None:
        """Calls under way may end yet; what listens is woken."""
        ...


class TooFewReplicas(Exception):
    """The command was done, and fewer replicas than asked for (the number is in `args`) had it in time."""


def options_of(address: Address) -> dict[str, Any]:
    """What redis-py is told of a connection."""
    return {
        "socket_timeout": address.timeout,
        "socket_connect_timeout": min(address.timeout, CONNECT_S),
        "retry": Retry(NoBackoff(), 0),  # whoever calls knows better whether to try again
        "max_connections": MADE_MOST,
        "protocol": 2,
        # over TLS it needs something to read before its look at a new connection, or takes tickets for an answer
        **({} if "ssl" in address.login else UNNAMED),
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
        self._closed = False
        self._patience_ms = int(address.timeout * WAIT_SHARE * 1000)
        self._process = os.getpid()

    def run(self, commands: Iterable[Command], replicas: int = 0) -> Iterator[Any]:
        free, link = self._free, self._take()
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
        free.append(link)
        if self._closed or free is not self._free:  # it was dropped meanwhile
            _hang_up(free)

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

    def place(self, _root: str) -> str:
        return ""

    def info(self, _root: str) -> Info:
        return self._client.info()

    def infos(self) -> list[Info]:
        return [self._client.info()]

    def fsync(self) -> str | None:
        return fsync_of(self._client)

    def ear(self) -> PubSub:
        return cast(PubSub, self._client.pubsub())

    def forget(self, _error: Exception) -> None:
        self._drop()

    def _drop(self) -> None:
        free, self._free = self._free, []
        _hang_up(free)
        self._pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        self._closed = True
        self._drop()
        self._client.close()


def _hang_up(links: list[Link]) -> None:
    with suppress(IndexError):  # other threads may do the same
        while True:
            links.pop().connection.disconnect()


def _answer(link: Any, replicas: int) -> Any:
    """The next answer; what Redis itself refused is an answer too, and leaves the connection as good as it was."""
    try:
        answer = link.read_response()
    except said.ResponseError as refusal:
        answer = refusal
    have = link.read_response() if replicas else 0
    return TooFewReplicas(have) if have < replicas and not isinstance(answer, Exception) else answer


def _client(address: Address) -> Redis:
    options = options_of(address)
    if address.kind == "sentinel":
        secure = {name: value for name, value in options.items() if name.startswith("ssl")}
        asking = {name: options[name] for name in options if name in ASKING} | address.sentinel_login
        sentinel = Sentinel(address.hosts, sentinel_kwargs=asking | secure)
        return cast(Redis, sentinel.master_for(address.service, **options))
    if "path" in options:
        return Redis(unix_socket_path=options.pop("path"), **options)
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **options)


def fsync_of(client: Redis) -> str | None:
    """The setting `appendfsync` of a server, if it may be read."""
    try:
        found = cast(dict[str, str], client.config_get("appendfsync"))
    except said.ResponseError:  # managed servers hide it, and so may an ACL
        return None
    return found.get("appendfsync")
