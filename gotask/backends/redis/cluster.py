"""The way to a Cluster, by redis-py's client, which follows where slots move and which replica is promoted."""

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

from redis import Redis, RedisCluster
from redis import exceptions as said
from redis.client import PubSub
from redis.cluster import ClusterNode

from gotask.backends.redis.address import Address
from gotask.backends.redis.lines import Command, Info, fsync_of, options_of

T = TypeVar("T")

#: what tells of one server that cannot be reached; the client then asks the others who is master now
AWAY: Final = (said.ConnectionError, said.TimeoutError)


def _own_words(error: BaseException) -> BaseException:
    """What a server said, of an exception that only tells that some did."""
    inner = error.__cause__ or error.__context__
    return error if inner is None or isinstance(error, said.RedisError | OSError) else _own_words(inner)


class _Client(RedisCluster):
    """redis-py's asks the server that has slot 0 for its commands as it is made, so it could not be made while that is dead."""

    def command(self, **_options: Any) -> Any:
        return _first(self.get_primaries(), lambda node: super(_Client, self).command(target_nodes=node))


def _first(nodes: Iterable[ClusterNode], ask: Callable[[ClusterNode], T]) -> T:
    """What the first of the servers answers that can be reached."""
    missed: Exception = said.ConnectionError("the Cluster names no master")
    for node in nodes:
        try:
            return ask(node)
        except AWAY as error:
            missed = error
    raise missed


class _Shared:
    """A client of a Cluster, and how many threads are using it. Closing it would break their calls."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        self.users = 0


class ClusterLine:
    """To the master that holds a key's slot."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._made: _Shared | None = None
        self._guard = threading.Lock()
        self._process = os.getpid()
        self._ears: WeakSet[PubSub] = WeakSet()
        self._closed = False

    @contextmanager
    def _cluster(self) -> Iterator[RedisCluster]:
        """The client of all threads. Whoever used it last closes one that was dropped: a cycle, it would not end by itself."""
        shared = self._take()
        try:
            yield shared.cluster
        finally:
            with self._guard:
                shared.users -= 1
                over = not shared.users and shared is not self._made
            if over:
                shared.cluster.close()

    def _take(self) -> _Shared:
        if self._process != os.getpid():
            self._made, self._guard, self._process = None, threading.Lock(), os.getpid()
        while True:
            with self._guard:
                if self._made is not None:
                    self._made.users += 1
                    return self._made
            shared = _Shared(self._connected())
            with self._guard:
                if self._made is None:
                    self._made = None if self._closed else shared
                    shared.users = 1
                    return shared
            shared.cluster.close()  # another thread was quicker

    def _connected(self) -> RedisCluster:
        nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
        try:
            return _Client(startup_nodes=nodes, **options_of(self._address))
        except said.RedisClusterException as error:
            raise _own_words(error) from None

    def run(self, commands: Iterable[Command], replicas: int = 0) -> Iterator[Any]:
        assert not replicas, "gotask.backends.redis.address refuses that"
        return (self._one(command) for command in commands)

    def _one(self, command: Command) -> Any:
        with self._cluster() as cluster:
            try:
                return cluster.execute_command(*command)
            except (said.NoScriptError, said.OutOfMemoryError) as refusal:
                return refusal

    def place(self, root: str) -> str:
        with self._cluster() as cluster:
            return cast(str, cluster.get_node_from_key(root).name)

    def info(self, root: str) -> Info:
        with self._cluster() as cluster:  # which finds out who is master now, if that server does not answer
            return cluster.info(target_nodes=cluster.get_node_from_key(root))

    def infos(self) -> list[Info]:
        return self._of_each(lambda server: server.info())

    def fsync(self) -> str | None:
        found = set(self._of_each(fsync_of))
        return next(iter(found)) if len(found) == 1 else None

    def _of_each(self, ask: Callable[[Redis], T]) -> list[T]:
        """What the masters answer. Raises only if none does."""
        found: list[T] = []
        missed: Exception | None = None
        with self._cluster() as cluster:
            for node in cluster.get_primaries():
                try:
                    found.append(ask(cluster.get_redis_connection(node)))
                except AWAY as error:
                    missed = error
        if missed is not None and not found:
            raise missed
        return found

    def ear(self) -> PubSub:
        """At any server that answers: what is published at one is heard at all. It outlives the client of the calls."""
        with self._cluster() as cluster:
            nodes = cluster.get_primaries()
            random.shuffle(nodes)
            node = _first(nodes, lambda node: (cluster.ping(target_nodes=node), node)[1])
        ear = PubSub(Redis(host=node.host, port=node.port, **options_of(self._address)).connection_pool)
        with self._guard:
            self._ears.add(ear)
        return ear

    def forget(self, error: Exception) -> None:
        if isinstance(error, AWAY):
            return
        self._drop()

    def _drop(self) -> None:
        with self._guard:
            shared, self._made = self._made, None
            over = shared is not None and not shared.users
        if shared is not None and over:
            shared.cluster.close()

    def close(self) -> None:
        self._closed = True
        self._drop()
        with self._guard:
            ears = list(self._ears)
        for ear in ears:
            connection = ear.connection
            if connection is not None:
                connection.disconnect()
