"""One connection through the proxy: a socket on each side, and for each way a reader, what is under way, and a writer."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final

from tests.servers.faults import Counts, Cut, Faults, Swallow, Way

CHUNK: Final = 65_536  #: bytes read at once
UNDER_WAY: Final = 64  #: chunks; beyond that the sender is held up, as by a network that is full
SLICES_PER_S: Final = 50  #: a throttled link sends little and often, not much and seldom
RESET: Final = struct.pack("ii", 1, 0)  #: SO_LINGER on, of 0 s: closing sends RST
Pipe = asyncio.Queue[tuple[float, bytes]]


class Link:
    """Carries bytes between a client and the server: `run` until both have ended or one is reset, then `close`.

    Whoever cancels `run` closes too: a task that is cancelled before its first step would not get to its `finally`.
    """

    def __init__(self, client: socket.socket, target: str | tuple[str, int], faults: Faults, counts: Counts) -> None:
        self._client, self._target, self._faults, self._counts = client, target, faults, counts
        self._server = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
        self._server.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._lost = set(faults.fatal)
        self._ended: set[Way] = set()
        self._orderly = False
        self._swallow: Swallow | None = None
        self._dropped: bytes | None = None

    async def run(self) -> None:
        try:
            await self._passing(Way.REQUEST)
            await self._loop.sock_connect(self._server, self._target)
            for one in (self._client, self._server):
                if one.family == socket.AF_INET:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as both:
                for way in Way:
                    pipe: Pipe = asyncio.Queue(UNDER_WAY)
                    both.create_task(self._read(way, pipe))
                    both.create_task(self._write(way, pipe))
            self._orderly = True
        except* (OSError, Cut):
            pass

    def lose(self, way: Way) -> None:
        """Nothing that goes this way ever arrives again."""
        self._lost.add(way)

    def end(self, way: Way) -> None:
        """The receiver of this way reads an end now, and what still comes is dropped."""
        self._ended.add(way)
        with suppress(OSError):
            self._ends(way)[1].shutdown(socket.SHUT_WR)

    def _ends(self, way: Way) -> tuple[socket.socket, socket.socket]:
        return (self._client, self._server) if way is Way.REQUEST else (self._server, self._client)

    async def _passing(self, way: Way) -> None:
        await self._faults.passing(way)
        if way in self._lost:
            await self._loop.create_future()  # for ever

    async def _read(self, way: Way, pipe: Pipe) -> None:
        data = b"-"
        while data:
            data = await self._loop.sock_recv(self._ends(way)[0], CHUNK)
            if way is Way.REPLY and self._swallow is not None:
                self._dropped = data
                raise Cut
            await pipe.put((self._loop.time() + self._faults.lag(), data))

    async def _write(self, way: Way, pipe: Pipe) -> None:
        while True:
            due, data = await pipe.get()
            await asyncio.sleep(due - self._loop.time())
            await self._passing(way)
            if not data:
                self.end(way)
                return
            if way not in self._ended:
                await self._send(way, data)

    async def _send(self, way: Way, data: bytes) -> None:
        if way is Way.REQUEST and self._swallow is None:
            self._swallow = self._faults.swallows(data)
        data, cut = self._faults.part(way, data)
        while data:
            rate = self._faults.bytes_per_s
            piece = data[: max(1, rate // SLICES_PER_S)] if rate else data
            await self._loop.sock_sendall(self._ends(way)[1], piece)
            if way is Way.REQUEST:
                self._counts.request_bytes += len(piece)
            else:
                self._counts.reply_bytes += len(piece)
            if rate:
                await asyncio.sleep(len(piece) / rate)
            data = data[len(piece) :]
        if cut:
            raise Cut

    def close(self) -> None:
        """Close both sides once `run` is over: with a reset, unless both had come to their ends."""
        self._counts.reset += not self._orderly
        for one in (self._client, self._server):
            if not self._orderly:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            one.close()
        if self._swallow is None:
            return
        if self._dropped is None:
            self._swallow.reply.set_exception(ConnectionError("the connection ended before the server replied"))
        else:
            self._swallow.reply.set_result(self._dropped)
