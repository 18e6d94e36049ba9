"""A TCP proxy before a server, which delays, holds, cuts and loses what passes through it, as a test tells it to.

    with ChaosProxy("127.0.0.1:6379") as proxy:
        store = backends.open(proxy.before("redis://127.0.0.1:6379/0"))
        lost = proxy.swallow_reply(containing=b"EVALSHA")      # the server acts, and the client never hears of it
        ...
        proxy.heal()

Methods take effect before they return. A fault lasts until `heal`, except those that strike once.
"""

import asyncio
import random
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.servers.faults import Counts, Faults, Swallow, Way
from tests.servers.link import Link
from tests.servers.processes import free_ports

__all__ = ["ChaosProxy", "Way"]

T = TypeVar("T")
ORDER_S: Final = 10.0  #: seconds an order to the proxy may take; it only ever waits for its own thread


class ChaosProxy:
    """One port of 127.0.0.1 before one server, given as "host:port" or as the Path of a Unix socket.

    It runs in a thread of its own until `close`. `seed` makes its jitter repeatable.
    """

    def __init__(self, target: str | Path, seed: int = 0) -> None:
        self.port = free_ports(1)[0]
        self.counts = Counts()
        host, _, port = str(target).rpartition(":")
        self._target = str(target) if isinstance(target, Path) else (host, int(port))
        self._faults = Faults(random.Random(seed))
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaosproxy", daemon=True)
        self._thread.start()
        self.heal()

    def _order(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(ORDER_S)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._links)

    def before(self, url: str) -> str:
        """`url` with the proxy in the place of its server."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}{self.address}"))

    # faults that last

    def heal(self) -> None:
        """All passes again, and nothing is armed. What was delayed comes when it is due; what is lost stays lost."""

        async def act() -> None:
            self._faults.clear()
            if self._listener is None:
                self._listen()

        self._order(act())

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """What is sent from now on arrives so much later, each way, give or take `jitter` seconds; its order is kept."""

        async def act() -> None:
            self._faults.delay_s, self._faults.jitter_s = seconds, jitter

        self._order(act())

    def throttle(self, bytes_per_s: int) -> None:
        """Each connection carries no more than this, each way."""

        async def act() -> None:
            self._faults.bytes_per_s = bytes_per_s

        self._order(act())

    def black_hole(self, *ways: Way, deliver: bool = True) -> None:
        """Accept and keep connections, and forward nothing; with `ways`, nothing that goes this way.

        Healing delivers what was held. Without `deliver` the connections that lived in it stay dead for ever, as after a
        firewall forgot them: open, and silent.
        """

        async def act() -> None:
            for way in ways or Way:
                self._faults.hold(way, fatal=not deliver)
                for link in self._links if not deliver else ():
                    link.lose(way)

        self._order(act())

    def refuse(self) -> None:
        """Refuse new connections. Those that are open stay."""

        async def act() -> None:
            if self._listener is not None:
                self._loop.remove_reader(self._listener)
                self._listener.close()
                self._listener = None

        self._order(act())

    def down(self) -> None:
        """As if the server had been killed: new connections are refused, and all others reset."""
        self.refuse()
        self.reset()

    # faults that strike once

    def reset(self) -> int:
        """Reset all open connections, on both sides; how many there were."""

        async def act() -> int:
            found = list(self._links.values())
            for task in found:
                task.cancel()
            await asyncio.gather(*found, return_exceptions=True)
            return len(found)

        return self._order(act())

    def half_close(self, way: Way = Way.REPLY) -> None:
        """End one way of all open connections. REPLY: the client reads an end, and its requests still pass."""

        async def act() -> None:
            for link in self._links:
                link.end(way)

        self._order(act())

    def swallow_reply(self, containing: bytes = b"") -> "Future[bytes]":
        """Forward the next request, wait until the server replies, drop the reply and reset the connection on both sides.

        The future is done once that has happened, and holds what was dropped. `containing` tells which request is meant where
        several clients talk. What arrives together is a request; a client must not send two before it has a reply.
        """
        swallow = Swallow(containing)

        async def act() -> None:
            self._faults.arm(swallow)

        self._order(act())
        return swallow.reply

    def cut_after(self, count: int, way: Way = Way.REPLY) -> None:
        """Let so many more bytes pass this way, then reset the connection that carries the next one, in its midst.

        `cut_after(0, Way.REQUEST)` resets at the next request, and the server sees nothing of it.
        """

        async def act() -> None:
            self._faults.cut_after(count, way)

        self._order(act())

    def close(self) -> None:
        """Reset what is open and leave the port."""
        if self._loop.is_closed():
            return
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # in the proxy's thread

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        # not loop.sock_accept: cancelled at the wrong moment, it drops an accepted connection unclosed
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        client.setblocking(False)
        self.counts.accepted += 1
        link = Link(client, self._target, self._faults, self.counts)
        task = self._loop.create_task(link.run())
        self._links[link] = task
        task.add_done_callback(lambda _: self._gone(link))

    def _gone(self, link: Link) -> None:
        del self._links[link]
        link.close()
