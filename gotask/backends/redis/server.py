"""Calls of the script, each with a deadline, and what Redis or the network says as errors of ours."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final

from redis import exceptions as said
from redis.client import PubSub

from gotask.backends.redis import sentences
from gotask.backends.redis.address import Address
from gotask.backends.redis.cluster import ClusterLine
from gotask.backends.redis.lines import Info, Line, ServerLine
from gotask.backends.redis.script import SHA, TEXT
from gotask.backends.redis.sentences import FULL_RETRY_S, SAID
from gotask.backends.redis.shards import Shards
from gotask.clock import monotonic
from gotask.errors import BackendDown, NotConfigured

FRESH_S: Final = 30.0  #: seconds that it is believed what a server says of itself: somebody may set another policy


class Server:
    """The Redis, or the Cluster, that an address names. Made without any I/O; the first call checks what is there."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.shards = Shards(address.prefix, address.shards)
        self._guard = threading.Lock()
        self._line: Line = ClusterLine(address) if address.kind == "cluster" else ServerLine(address)
        self._judged: dict[str, float] = {}  # since the last reconnect: place -> when its server was found good
        self._opened: dict[str, str] = {}  # and root -> the place where it was found to be of this store
        self._known = False  # whether the store ever was
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
            self._check(root)
            yield from _evaluate(line, root, calls, replicas)

    def reach(self, root: str) -> None:
        """Check the server that has a root, unless that was done a while ago. Raises what a call would, before it is made."""
        with self:
            self._check(root)

    def listen(self, channels: list[str]) -> PubSub:
        """A connection of its own that hears those channels by the time it is returned."""
        with self as line:
            return _subscribed(line.ear(), channels, self.address.timeout)

    def promise(self) -> str:
        """What an answered enqueue survives, by how Redis writes to its disk."""
        with self as line:
            self._check(self.shards.first)
            infos = line.infos()
            for info in infos:
                sentences.judge(self.address, info)
            return _promise(infos, line.fsync())

    def infos(self) -> list[Info]:
        """What each server that takes writes says of itself, also one that would be refused; those that answer."""
        try:
            return self._line.infos()
        except SAID as error:
            raise self._lost(error) from error

    def close(self) -> None:
        with self._guard:
            if not self.closed:
                self.closed = True
                self._line.close()

    def __enter__(self) -> Line:
        """The line. What Redis or the network says until it is left becomes an error of ours."""
        if self.closed:
            raise BackendDown(f"The storage {self.address.shown} was closed; open it again.", retry_after=None)
        return self._line

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        told = self._lost(error) if isinstance(error, SAID) else error
        if isinstance(told, NotConfigured) and self._known:  # it was good before: what runs goes on asking, and says so
            told = BackendDown(str(told), retry_after=FULL_RETRY_S, refused=True)
        if told is not error and told is not None:
            raise told from error

    def _check(self, root: str) -> None:
        """Refuse a server that would lose jobs, and a store that was cut otherwise than the address says.

        Only where a call is about to go: a server that is away is nothing to calls of others.
        """
        place = self._opened.get(root)
        if place is not None and monotonic() - self._judged.get(place, -inf) < FRESH_S:
            return
        if not self._known and root != self.shards.first:  # only that one has the number of shards of any store
            self._check(self.shards.first)
        judged, opened = self._judged, self._opened  # which others replace when they lose the server
        place = self._line.place(root)
        if monotonic() - judged.get(place, -inf) >= FRESH_S:
            sentences.judge(self.address, self._line.info(root))
            judged[place] = monotonic()
        if root not in opened:
            self._open(root)
        opened[root] = place
        self._known = True

    def _open(self, root: str) -> None:
        (answer,) = _evaluate(self._line, root, [("open", "", self.address.shards)])
        stored = int(answer)
        if stored != self.address.shards:
            raise NotConfigured(
                f"The store {self.address.prefix!r} at {self.address.shown} has {stored} shards, and the URL says "
                f"{self.address.shards}: that number is fixed for as long as a store lives, so say shards={stored}, "
                "or another prefix."
            )

    def _lost(self, error: Exception) -> BackendDown | NotConfigured:
        """An error in a sentence. Connections that may lead to the wrong server, or nowhere, are dropped."""
        if sentences.may_be_elsewhere(error):
            with self._guard:
                self._line.forget(error)
                self._judged, self._opened = {}, {}
        return sentences.translated(self.address, error)


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
