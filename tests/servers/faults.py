"""What is wrong with a line at present: the standing faults of a proxy, and those armed to strike once."""

import asyncio
import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum


class Way(Enum):
    """The two directions of a connection."""

    REQUEST = "from client to server"
    REPLY = "from server to client"


class Cut(Exception):
    """The connection is to be reset at this byte."""


@dataclass
class Counts:
    """What has passed a proxy since it was made. Bytes count once they were forwarded."""

    accepted: int = 0  #: connections
    reset: int = 0  #: connections that ended with a reset, by a fault or because one side did
    request_bytes: int = 0
    reply_bytes: int = 0


@dataclass(frozen=True)
class Swallow:
    """An armed loss of one reply: to the request that contains these bytes."""

    containing: bytes
    reply: "Future[bytes]" = field(default_factory=Future)


class Faults:
    """The faults of one proxy. All links read it; only the proxy's thread touches it."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._passes = {way: asyncio.Event() for way in Way}
        self._swallow: Swallow | None = None
        self.clear()

    def clear(self) -> None:
        self.delay_s = self.jitter_s = 0.0
        self.bytes_per_s = 0  #: no limit
        self.fatal: set[Way] = set()  #: ways on which the black hole keeps what it holds
        self._left: dict[Way, int] = {}
        self.arm(None)
        for passes in self._passes.values():
            passes.set()

    def arm(self, swallow: Swallow | None) -> None:
        if self._swallow is not None:
            self._swallow.reply.cancel()
        self._swallow = swallow

    def hold(self, way: Way, fatal: bool) -> None:
        self._passes[way].clear()
        if fatal:
            self.fatal.add(way)

    def cut_after(self, count: int, way: Way) -> None:
        self._left[way] = count

    async def passing(self, way: Way) -> None:
        """Return as soon as nothing holds back what goes this way."""
        await self._passes[way].wait()

    def lag(self) -> float:
        """Seconds that the next bytes are to be late."""
        return max(0.0, self.delay_s + self._dice.uniform(-self.jitter_s, self.jitter_s))

    def swallows(self, request: bytes) -> Swallow | None:
        """The armed swallow, if this is the request it waits for; it is not armed any more."""
        found = self._swallow
        if found is None or found.containing not in request:
            return None
        self._swallow = None
        return found

    def part(self, way: Way, data: bytes) -> tuple[bytes, bool]:
        """What of `data` passes before a cut, and whether the cut comes then."""
        left = self._left.get(way)
        if left is None or len(data) <= left:
            self._left.update({way: left - len(data)} if left is not None else {})
            return data, False
        del self._left[way]
        return data[:left], True
