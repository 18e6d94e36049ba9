"""The connections to Redis: one call of the script at a time, each with a deadline, and what Redis says as our errors."""

import threading
from collections.abc import Callable
from typing import Any, Final

from redis import Redis, RedisCluster, Sentinel
from redis import exceptions as said
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.cluster import ClusterNode
from redis.retry import Retry

from gotask.backends.redis.address import Address
from gotask.backends.redis.script import SHA, TEXT
from gotask.errors import BackendDown, NotConfigured

OLDEST: Final = (6, 2)  #: version of Redis
FULL_RETRY_S: Final = 5.0  #: seconds that a producer should wait when Redis is full
CONNECT_S: Final = 1.0  #: seconds for a connection to be made

Client = Redis | RedisCluster


class Server:
    """The Redis, or the Cluster, that an address names. Made without any I/O; the first call checks what is there."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._guard = threading.Lock()
        self._client: Client | None = None
        self._checked = False
        self._closed = False

    def run(self, root: str, *arguments: Any) -> Any:
        """One call of the script. Raises BackendDown when there is no answer in time, or none that helps."""
        return self._told(lambda client: self._evaluate(client, root, arguments))

    def run_durably(self, root: str, *arguments: Any) -> Any:
        """`run`, then wait until as many replicas have it as the address asks for."""
        answer = self.run(root, *arguments)
        wanted = self.address.wait
        if wanted:
            have = self._told(lambda client: client.wait(wanted, int(self.address.timeout * 800)))
            if have < wanted:
                raise BackendDown(
                    f"Only {have} of {wanted} replicas of {self.address.shown} had it in time, so the outcome is unknown; "
                    "look at the replicas, and try again with the same id."
                )
        return answer

    def _evaluate(self, client: Client, root: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return client.execute_command("EVALSHA", SHA, 1, root, *arguments)
        except said.NoScriptError:  # the first call, or Redis was restarted
            return client.execute_command("EVAL", TEXT, 1, root, *arguments)

    def _told(self, act: "Callable[[Client], Any]") -> Any:
        try:
            client = self._connected()
            if not self._checked:
                self._check(client)
            return act(client)
        except (said.RedisError, OSError) as error:
            raise self._translated(error) from error

    def _connected(self) -> Client:
        with self._guard:
            if self._closed:
                raise BackendDown(f"The storage {self.address.shown} was closed; open it again.", retry_after=None)
            if self._client is None:
                self._client = connect(self.address)
            return self._client

    def _translated(self, error: Exception) -> Exception:
        """What Redis or the network said, as an error of ours. Connections that may be to the wrong server are dropped."""
        shown, text = self.address.shown, str(error)
        if isinstance(error, said.AuthenticationError | said.AuthorizationError | said.NoPermissionError):
            return BackendDown(f"Redis at {shown} does not let us in ({text}); look at the user, the password and the ACL.")
        if isinstance(error, said.OutOfMemoryError):
            return BackendDown(
                f"Redis at {shown} is full; raise its maxmemory, or wait until finished jobs are forgotten.",
                retry_after=FULL_RETRY_S,
            )
        if isinstance(error, said.ReadOnlyError):
            self._forget()
            return BackendDown(f"Redis at {shown} is a replica, and takes no writes; a failover may be under way.")
        if isinstance(error, said.TimeoutError):
            self._forget()
            return BackendDown(
                f"Redis at {shown} did not answer within {self.address.timeout:g} s; the outcome is unknown, "
                "so try again with the same id."
            )
        if isinstance(error, said.ConnectionError | said.ClusterError | OSError):
            self._forget()
            return BackendDown(f"Redis at {shown} cannot be reached ({text}); look whether it runs, and at its address.")
        return BackendDown(f"Redis at {shown} refused ({text}); the outcome is unknown, so try again with the same id.")

    def _forget(self) -> None:
        """Drop the idle connections: what broke one may have broken all, or the server may be another by now."""
        with self._guard:
            client = self._client
            if isinstance(client, Redis):
                client.connection_pool.disconnect(inuse_connections=False)
            elif client is not None:
                self._client = None  # it knows a topology that may be gone
        if isinstance(client, RedisCluster):
            client.close()

    def _check(self, client: Client) -> None:
        """Refuse servers that would lose jobs, and those that lack what the script needs."""
        for info in everywhere(client):
            version = str(info.get("valkey_version") or info.get("redis_version") or "0")
            if tuple(map(int, version.split(".")[:2])) < OLDEST:
                raise NotConfigured(
                    f"Redis at {self.address.shown} has version {version}; GoTask needs Redis {'.'.join(map(str, OLDEST))} "
                    "or later, or Valkey."
                )
            policy = info.get("maxmemory_policy", "noeviction")
            if policy != "noeviction":
                raise NotConfigured(
                    f"Redis at {self.address.shown} may delete jobs when its memory is full (maxmemory-policy {policy}); "
                    "set it to noeviction: redis-cli config set maxmemory-policy noeviction, and the same in redis.conf."
                )
        self._checked = True

    def promise(self) -> str:
        """What an answered enqueue survives, by how Redis writes to its disk."""
        return self._told(_promise)  # type: ignore[no-any-return]

    def listen(self, channels: list[str]) -> PubSub:
        """A connection of its own that hears those channels by the time it is returned."""

        def subscribed(client: Client) -> PubSub:
            ear = client.pubsub()
            try:
                ear.subscribe(*channels)
                for _ in channels:
                    if ear.get_message(timeout=self.address.timeout) is None:
                        raise said.TimeoutError("no confirmation")
            except BaseException:
                ear.close()
                raise
            return ear

        return self._told(subscribed)  # type: ignore[no-any-return]

    def close(self) -> None:
        with self._guard:
            self._closed = True
            if self._client is not None:
                self._client.close()
                self._client = None


def connect(address: Address) -> Client:
    """A client of redis-py. It makes connections as they are needed, and in a forked child new ones."""
    options: dict[str, Any] = {
        "socket_timeout": address.timeout,
        "socket_connect_timeout": min(address.timeout, CONNECT_S),
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),  # whoever calls knows better whether to try again
        "protocol": 2,
        **address.login,
    }
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        return RedisCluster(startup_nodes=nodes, cluster_error_retry_attempts=3, **_without(options, "retry", "db"))
    if address.kind == "sentinel":
        login = {**address.sentinel_login, **{name: value for name, value in options.items() if name.startswith("s")}}
        sentinel = Sentinel(address.hosts, sentinel_kwargs=login | {"retry": options["retry"]})
        return sentinel.master_for(address.service, **options)  # type: ignore[no-any-return]
    if "path" in options:
        return Redis(unix_socket_path=options.pop("path"), **_without(options, "socket_keepalive"))
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **options)


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def everywhere(client: Client) -> list[dict[str, Any]]:
    """INFO of every server that may hold jobs."""
    if isinstance(client, Redis):
        return [client.info()]
    return [client.get_redis_connection(node).info() for node in client.get_primaries()]


def _promise(client: Client) -> str:
    one = client if isinstance(client, Redis) else client.get_redis_connection(client.get_primaries()[0])
    survives = "Once enqueue has answered, a job survives"
    if not one.info("persistence").get("aof_enabled"):
        return (
            f"{survives} any crash of GoTask, but not one of Redis, which goes back to its last snapshot: "
            "set 'appendonly yes' in redis.conf to keep it."
        )
    try:
        fsync = one.config_get("appendfsync").get("appendfsync", "everysec")
    except said.ResponseError:  # managed servers hide it
        fsync = "everysec"
    return {
        "always": f"{survives} a crash of GoTask, of Redis, and loss of power (appendfsync always).",
        "no": f"{survives} a crash of GoTask or Redis; loss of power may cost the last half minute (appendfsync no).",
    }.get(
        fsync,
        f"{survives} a crash of GoTask or Redis; loss of power may cost the last two seconds (appendfsync everysec).",
    )
