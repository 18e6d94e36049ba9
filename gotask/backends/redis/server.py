"""Calls of the script, each with a deadline, and what Redis or the network says as errors of ours."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from redis import exceptions as said
from redis.client import PubSub
from redis.sentinel import MasterNotFoundError

from gotask.backends.redis.address import Address
from gotask.backends.redis.lines import Info, Line, TooFewReplicas, open_line
from gotask.backends.redis.script import SHA, TEXT
from gotask.backends.redis.shards import Shards
from gotask.errors import BackendDown, NotConfigured

OLDEST: Final = (6, 2)  #: version of Redis
#: what a line raises
SAID: Final = (said.RedisError, said.RedisClusterException, TooFewReplicas, OSError)
POLICY: Final = "noeviction"  #: the only maxmemory-policy that never deletes a job
FULL_RETRY_S: Final = 5.0  #: seconds that a producer should wait when Redis is full
#: an answer, or the name of an error, that no trying again will change -> what is wrong in the URL
MISTAKES: Final = {
    "MovedError": "is one node of a Cluster: write the URL as redis+cluster://",
    "MOVED ": "is one node of a Cluster: write the URL as redis+cluster://",  # so too in redis-py 5
    "cluster support disabled": "is no Cluster: write the URL as redis://",
    "Cluster mode is not enabled": "is no Cluster: write the URL as redis://",  # in redis-py 5
    "DB index is out of range": "has no database of that number: write another, or raise 'databases' in redis.conf",
}


class Server:
    """The Redis, or the Cluster, that an address names. Made without any I/O; the first call checks what is there."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.shards = Shards(address.prefix, address.shards)
        self._guard = threading.Lock()
        self._line: Line = open_line(address)
        self._checked = self._known = False  # since the last reconnect, and ever
        self.closed = False

    def run(self, root: str, *arguments: Any) -> Any:
        """One call of the script. Raises BackendDown when there is no answer in time, or none that helps."""
        (answer,) = self.run_all(root, (arguments,))
        return answer

    def run_all(self, root: str, calls: Iterable[Sequence[Any]], replicas: int = 0) -> Iterator[Any]:
        """Calls of the script one after the other, and their answers, to be taken to the end.

        The next call is made, and the answer to the one before is worked on, while Redis is at another. With `replicas`, a call
        is answered once so many have what it wrote.
        """
        with self as line:
            yield from _evaluate(line, root, calls, replicas)

    def listen(self, channels: list[str]) -> PubSub:
        """A connection of its own that hears those channels by the time it is returned."""
        with self as line:
            return _subscribed(line.ear(), channels, self.address.timeout)

    def promise(self) -> str:
        """What an answered enqueue survives, by how Redis writes to its disk."""
        with self as line:
            return _promise(line.infos(), line.fsync())

    def infos(self) -> list[Info]:
        """What each server that takes writes says of itself, also one that would be refused."""
        try:
            return self._line.infos()
        except SAID as error:
            raise self._translated(error) from error

    def close(self) -> None:
        with self._guard:
            if not self.closed:
                self.closed = True
                self._line.close()

    def __enter__(self) -> Line:
        """The line, checked. What Redis or the network says until it is left becomes an error of ours."""
        if self.closed:
            raise BackendDown(f"The storage {self.address.shown} was closed; open it again.", retry_after=None)
        if not self._checked:
            try:
                self._check()
            except SAID as error:
                raise self._translated(error) from error
            except NotConfigured as error:  # of a server that was good before: what runs goes on asking, and says so
                if self._known:
                    raise BackendDown(str(error), retry_after=FULL_RETRY_S, refused=True) from error
                raise
        return self._line

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SAID):
            raise self._translated(error) from error

    def _check(self) -> None:
        """Refuse servers that would lose jobs, and a store that was cut otherwise than the address says."""
        for info in self._line.infos():
            self._check_server(info)
        for root in dict.fromkeys((self.shards.first, *self.shards.roots)):
            (answer,) = _evaluate(self._line, root, [("open", "", self.address.shards)])
            stored = int(answer)
            if stored != self.address.shards:
                raise NotConfigured(
                    f"The store {self.address.prefix!r} at {self.address.shown} has {stored} shards, and the URL says "
                    f"{self.address.shards}: that number is fixed for as long as a store lives, so say shards={stored}, "
                    "or another prefix."
                )
        self._checked = self._known = True

    def _check_server(self, info: Info) -> None:
        """Refuse a server that is too old, or may evict jobs."""
        if version_of(info) < OLDEST:
            raise NotConfigured(
                f"Redis at {self.address.shown} has version {info.get('redis_version')}; GoTask needs Redis "
                f"{'.'.join(map(str, OLDEST))} or later, or Valkey."
            )
        policy = info.get("maxmemory_policy", POLICY)
        if policy != POLICY:
            raise NotConfigured(
                f"Redis at {self.address.shown} may delete jobs when its memory is full (maxmemory-policy {policy}); "
                f"set it to {POLICY}: redis-cli config set maxmemory-policy {POLICY}, and the same in redis.conf."
            )

    def _translated(self, error: Exception) -> BackendDown | NotConfigured:
        """An error in a sentence. Connections that may lead to the wrong server, or nowhere, are dropped."""
        at, text = f"Redis at {self.address.shown}", str(error).rstrip(".")
        if isinstance(error, TooFewReplicas):
            return BackendDown(
                f"Only {error} of {self.address.wait} replicas of {self.address.shown} had it in time, so the outcome is "
                "unknown; look at the replicas, and try again with the same id."
            )
        for words, advice in MISTAKES.items():
            if words in text or words == type(error).__name__:
                return NotConfigured(f"{at} {advice}.")
        if isinstance(error, said.AuthenticationError | said.AuthorizationError | said.NoPermissionError):
            return BackendDown(f"{at} does not let us do this ({text}); look at the user, the password and the ACL.")
        if isinstance(error, said.OutOfMemoryError):
            sentence = f"{at} is full; raise its maxmemory, or wait until finished jobs are forgotten."
            return BackendDown(sentence, retry_after=FULL_RETRY_S, refused=True)
        if isinstance(error, said.ResponseError) and not isinstance(error, said.ReadOnlyError | said.ClusterDownError):
            return BackendDown(f"{at} refused ({text}); the outcome is unknown, so try again with the same id.")
        with self._guard:
            self._line.forget()
            self._checked = False  # it may be another server that answers next
        if isinstance(error, said.ReadOnlyError):
            return BackendDown(f"{at} is a replica, and takes no writes; a failover may be under way, so try again.")
        if isinstance(error, MasterNotFoundError):
            return BackendDown(
                f"No Sentinel of {self.address.shown} says where the master is; look whether they run, at the name of the "
                "service, and at sentinel_password if they want one."
            )
        if isinstance(error, said.TimeoutError):
            return BackendDown(
                f"{at} did not answer within {self.address.timeout:g} s; the outcome is unknown, so try again with the same id."
            )
        return BackendDown(f"{at} cannot be reached ({text}); look whether it runs, and at its address.")


def version_of(info: Info) -> tuple[int, ...]:
    """Major and minor. Valkey names the Redis it is compatible with."""
    return tuple(int(part) for part in str(info.get("redis_version") or "0").split(".")[:2])


def _evaluate(line: Line, root: str, calls: Iterable[Sequence[Any]], replicas: int = 0) -> Iterator[Any]:
    made: deque[Sequence[Any]] = deque()
    refusal: Exception | None = None

    def commands() -> Iterator[Sequence[Any]]:
        for call in calls:
            made.append(call)
            yield ("EVALSHA", SHA, 1, root, *call)
            if refusal is not None:
                return

    for answer in line.run(commands(), replicas):
        call = made.popleft()
        if isinstance(answer, said.NoScriptError):  # the first call, or Redis was restarted, or told to forget its scripts
            (answer,) = line.run([("EVAL", TEXT, 1, root, *call)], replicas)
        if isinstance(answer, Exception):
            refusal = refusal or answer  # raised once all that was sent is answered, so that the connection stays good
        elif refusal is None:
            yield answer
    if refusal is not None:
        raise refusal


def _subscribed(ear: PubSub, channels: list[str], patience: float) -> PubSub:
    try:
        ear.subscribe(*channels)
        for _ in channels:
            if ear.get_message(timeout=patience) is None:
                raise said.TimeoutError("a subscription was not confirmed")
    except BaseException:
        ear.close()
        raise
    return ear


def _promise(infos: list[Info], fsync: str | None) -> str:
    survives = "Once enqueue has answered, a job survives"
    if not all(info.get("aof_enabled") for info in infos):
        return (
            f"{survives} any crash of GoTask, but not one of Redis, which goes back to its last snapshot: "
            "set 'appendonly yes' in redis.conf to keep it."
        )
    cost = {
        "always": " and loss of power",
        "everysec": "; loss of power may cost the last two seconds",
        "no": "; loss of power may cost the last half minute",
    }
    known = f"(appendfsync {fsync})" if fsync in cost else "(appendfsync could not be read)"
    failover = (
        "; a failover may cost what the replica had not received" if any(i.get("connected_slaves") for i in infos) else ""
    )
    return f"{survives} a crash of GoTask or Redis{cost.get(fsync or '', cost['everysec'])}{failover} {known}."
