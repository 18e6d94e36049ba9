"""One server process: a worker of gunicorn's arbiter that serves an ASGI application with uvicorn, on uvloop."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
import uvloop
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from gotask.api.connection import Connection
from gotask.errors import GotaskError

logger = logging.getLogger("gotask.server")
BEAT_S: Final = 1.0  #: seconds between signs of life to the arbiter; also how soon an orphan notices


class Server(uvicorn.Server):
    """uvicorn's server, which wakes once a second instead of ten times, and lets those who wait go when it stops."""

    def __init__(self, config: uvicorn.Config, alive: Callable[[], bool], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._alive = alive
        self._on_stop = on_stop
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def main_loop(self) -> None:
        while not await self.on_tick(0) and self._alive():
            try:
                await asyncio.wait_for(self._stop.wait(), BEAT_S)
            except TimeoutError:
                continue

    async def shutdown(self, sockets: Any = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        # uvicorn would raise the signal again when done, and an orderly end would look like a death
        self.force_exit = self.force_exit or self.should_exit or sig == signal.SIGQUIT
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._stop.set)


class Process(Worker):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn forks. Its application says by `on_stop` what to do when stopping begins, by `on_end` what at the end."""

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def load_wsgi(self) -> None:
        try:
            super().load_wsgi()
        except Exception as error:
            logger.error("The server cannot start: %s", error, exc_info=not isinstance(error, GotaskError))
            sys.exit(Arbiter.APP_LOAD_ERROR)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self.wsgi,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=self.cfg.backlog,
            timeout_keep_alive=self.cfg.keepalive,
            timeout_graceful_shutdown=max(1, self.cfg.graceful_timeout - 1),
            timeout_notify=0,  # with each tick,
            callback_notify=self._beat,
        )
        server = Server(config, lambda: os.getppid() == self.ppid, self.app.on_stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)
        try:
            await server.serve(sockets=self.sockets)
        finally:
            self.app.on_end()

    async def _beat(self) -> None:
        self.notify()
