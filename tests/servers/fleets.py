"""Several Redis servers that act as one: a Cluster of masters, and a master with a replica under Sentinels."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final, Self

from redis.exceptions import RedisError

from tests.servers.processes import free_ports, until
from tests.servers.redis import Redis, Setting

SLOTS: Final = 16_384  #: hash slots of a Redis Cluster
#: milliseconds without an answer until a node counts as failed: short for tests, long enough for a machine that is busy
NODE_TIMEOUT_MS: Final = 5_000
FAILOVER_S: Final = 60.0  #: seconds in which a fleet must have got over a loss, on a machine however busy
#: milliseconds. A Sentinel as it comes learns of a server's new role within 10 s, of other Sentinels within 2 s, and does
#: nothing for 30 s once it was not scheduled for 2 s
SENTINEL_PACE: Final = {"INFO-PERIOD": 500, "PUBLISH-PERIOD": 300, "TILT-PERIOD": 3_000}


class Fleet(ABC):
    """Servers that start and end together."""

    @abstractmethod
    def members(self) -> Sequence[Redis]:
        """All of them; they are ended in reverse order."""

    @abstractmethod
    def start(self) -> None: ...

    def stop(self) -> None:
        with ExitStack() as each:
            for one in self.members():
                each.callback(one.stop)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Cluster(Fleet):
    """Masters without replicas, which share all slots evenly. `settings` are for each of them."""

    def __init__(self, folder: Path, masters: int = 3, **settings: Setting) -> None:
        ports = free_ports(2 * masters)
        self._bus = ports[masters:]
        self._formed = False
        self._share = -(-SLOTS // masters)
        settings = {"cluster_enabled": True, "cluster_node_timeout": NODE_TIMEOUT_MS, **settings}
        self.nodes = [Redis(folder / f"node-{n}", port=ports[n], cluster_port=self._bus[n], **settings) for n in range(masters)]

    @property
    def url(self) -> str:
        """`redis+cluster://` and all its nodes, without a query."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def start(self) -> None:
        """Start all nodes that are down, and return once each of them says that the cluster is whole."""
        for node in self.nodes:
            if not node.running:
                node.start()
        if not self._formed:
            self._form()
        until("the cluster is whole", self.whole, FAILOVER_S)

    def _form(self) -> None:
        for n, node in enumerate(self.nodes):
            # distinct epochs spare the nodes a quarrel over who is older, which would delay the first agreement
            node.command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            node.command("CLUSTER", "ADDSLOTS", *range(n * self._share, min(SLOTS, (n + 1) * self._share)))
            for met, bus in zip(self.nodes[:n], self._bus[:n], strict=True):
                node.command("CLUSTER", "MEET", "127.0.0.1", met.port, bus)
        self._formed = True

    def whole(self) -> bool:
        """Whether every node knows all others and sees every slot served."""
        found = [node.facts("CLUSTER", "INFO") for node in self.nodes]
        count = str(len(self.nodes))
        return all(one.get("cluster_state") == "ok" and one["cluster_known_nodes"] == count for one in found)

    def holder(self, key: str) -> Redis:
        """The node that serves a key's slot as the cluster was formed."""
        slot: int = self.nodes[0].command("CLUSTER", "KEYSLOT", key)
        return self.nodes[slot // self._share]

    def members(self) -> Sequence[Redis]:
        return self.nodes


class Sentinel(Redis):
    """One watcher. It keeps what it knows in its own redis.conf, and is asked by `command` like a server."""

    DEFAULTS: ClassVar[Mapping[str, Setting]] = {}
    FLAGS: ClassVar[tuple[str, ...]] = ("--sentinel",)

    def start(self) -> None:
        super().start()
        self.command("SENTINEL", "DEBUG", *(word for pair in SENTINEL_PACE.items() for word in pair))


class Sentinels(Fleet):
    """A master, a replica, and three Sentinels of which two must agree that the master is gone.

    Their settings are hasty: a master is gone after `down_after_ms` without an answer. `settings` are for the two servers.
    """

    SERVICE: ClassVar[str] = "mymaster"

    def __init__(self, folder: Path, down_after_ms: int = 800, failover_timeout_ms: int = 3_000, **settings: Setting) -> None:
        settings = {"repl_diskless_sync_delay": 0, **settings}
        first = Redis(folder / "server-0", **settings)
        second = Redis(folder / "server-1", replicaof=f"127.0.0.1 {first.port}", **settings)
        self.servers = [first, second]
        rules = [
            f"monitor {self.SERVICE} 127.0.0.1 {first.port} 2",
            f"down-after-milliseconds {self.SERVICE} {down_after_ms}",
            f"failover-timeout {self.SERVICE} {failover_timeout_ms}",
        ]
        self.sentinels = [Sentinel(folder / f"sentinel-{n}", sentinel=rules) for n in range(3)]

    @property
    def url(self) -> str:
        """`redis+sentinel://`, all Sentinels, the service and database 0, without a query."""
        return f"redis+sentinel://{','.join(one.address for one in self.sentinels)}/{self.SERVICE}/0"

    def start(self) -> None:
        """Start all, and return once the replica is in step and the Sentinels know it and each other."""
        for server in self.servers:
            server.start()
        until("the replica is in step", self._in_step)
        for sentinel in self.sentinels:
            sentinel.start()
        until("the Sentinels know each other and the replica", lambda: all(map(self._informed, self.sentinels)))

    def _in_step(self) -> bool:
        found = [server.facts("INFO", "replication") for server in self.servers]
        return {one.get("role") for one in found} == {"master", "slave"} and any(
            one.get("master_link_status") == "up" for one in found
        )

    def _informed(self, sentinel: Sentinel) -> bool:
        found = sentinel.facts("INFO", "sentinel").get("master0", "")
        return "status=ok" in found and "slaves=1" in found and "sentinels=3" in found

    def master(self) -> Redis:
        """The server that all Sentinels call the master; AssertionError while they differ."""
        named = {self._named(sentinel) for sentinel in self.sentinels if sentinel.running}
        assert len(named) == 1, f"the Sentinels name {sorted(named)}"
        (server,) = (server for server in self.servers if server.port in named)
        return server

    def _named(self, sentinel: Sentinel) -> int:
        _, port = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)
        return int(port)

    def failover(self) -> Redis:
        """Kill the master, and return the new one once it is master and all Sentinels say so. The old one stays dead."""
        old = self.master()
        (new,) = (server for server in self.servers if server is not old)
        old.kill()
        until("the replica is the master", lambda: self._promoted(new), FAILOVER_S)
        return new

    def _promoted(self, new: Redis) -> bool:
        try:
            agreed = all(self._named(sentinel) == new.port for sentinel in self.sentinels if sentinel.running)
        except RedisError:
            return False
        return agreed and new.facts("INFO", "replication").get("role") == "master"

    def rejoin(self) -> None:
        """Start the servers that are down, and return once one is a replica in step, so that `failover` may be called again."""
        for server in self.servers:
            if not server.running:
                server.start()
        until("there is a replica in step again", self._in_step, FAILOVER_S)
        until("all Sentinels see it", lambda: all(map(self._whole, self.sentinels)), FAILOVER_S)

    def _whole(self, sentinel: Sentinel) -> bool:
        (replica,) = sentinel.command("SENTINEL", "REPLICAS", self.SERVICE)
        facts = dict(zip(replica[::2], replica[1::2], strict=True))
        return bool(facts["flags"] == "slave" and facts["master-link-status"] == "ok")

    def members(self) -> Sequence[Redis]:
        return (*self.servers, *self.sentinels)  # ended in reverse: the watchers before they can act
