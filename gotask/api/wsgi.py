"""The server: gunicorn's arbiter over processes that serve HTTP. Each opens its own connection to the store, after the fork."""

import logging
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import falcon.asgi
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from gotask import __version__, backends
from gotask.api.auth import Gate, parse_keys
from gotask.api.connection import HEADER_MAX, HEADERS_MAX
from gotask.api.process import Process
from gotask.errors import GotaskError, NotConfigured
from gotask.settings import is_embedded, is_loopback

logger = logging.getLogger("gotask.server")

BACKLOG: Final = 2048  #: connections the kernel holds while all processes are busy
KEEP_ALIVE_S: Final = 75  #: seconds an idle connection is kept; longer than the minute that proxies keep theirs
SILENCE_S: Final = 60  #: seconds a process may be silent before the arbiter takes it for hung and replaces it


class Settings(Protocol):
    """What the server needs to know; gotask.settings.ServerSettings has it."""

    @property
    def url(self) -> str: ...
    @property
    def http_addr(self) -> str: ...
    @property
    def http_port(self) -> int: ...
    @property
    def metrics_port(self) -> int: ...
    @property
    def http_workers(self) -> int: ...
    @property
    def api_keys(self) -> Sequence[str]: ...
    @property
    def allow_anonymous(self) -> bool: ...
    @property
    def log_level(self) -> str: ...
    @property
    def shutdown_timeout(self) -> float: ...
    def check(self) -> None: ...


def serve(settings: Settings) -> int:
    """Serve until told to stop. Returns the exit code: 0 after an orderly stop, 1 when it could not start."""
    master = os.getpid()
    shared = ""
    try:
        keys = parse_keys(settings.api_keys)
        settings.check()
        ports = [settings.http_port, *filter(None, [settings.metrics_port])]
        listeners = [_listen(settings.http_addr, port) for port in ports]
    except GotaskError as error:
        logger.error("%s", error)
        return 1
    _lift_limits()
    if settings.http_workers > 1:  # counters of several processes add up in files that all of them map
        shared = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="gotask-metrics-")
    logger.info("GoTask %s serves http://%s:%d", __version__, settings.http_addr, settings.http_port)
    if not keys and not is_loopback(settings.http_addr):
        logger.warning("Anybody who can reach %s may do anything here: no API keys are set.", settings.http_addr)
    try:
        Application(settings, Gate(settings.http_addr, keys, settings.allow_anonymous), listeners).run()
    except SystemExit as end:
        if os.getpid() != master:  # a process that could not start: its code tells the arbiter not to try for ever
            raise
        return 0 if not end.code else 1
    finally:
        if shared and os.getpid() == master:
            shutil.rmtree(shared, ignore_errors=True)
    return 0


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn runs: its configuration, and how a forked process makes the ASGI application."""

    def __init__(self, settings: Settings, gate: Gate, listeners: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._gate = gate
        self._listeners = [listener.detach() for listener in listeners]
        self._at_stop: list[Callable[[], None]] = []
        self._at_end: list[Callable[[], None]] = []
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": [f"fd://{number}" for number in self._listeners],
            "workers": self._settings.http_workers,
            "worker_class": Process,
            "logger_class": Log,
            "loglevel": self._settings.log_level,
            "backlog": BACKLOG,
            "keepalive": KEEP_ALIVE_S,
            "timeout": SILENCE_S,
            "graceful_timeout": max(1, round(self._settings.shutdown_timeout)),
            "limit_request_fields": HEADERS_MAX,
            "limit_request_field_size": HEADER_MAX - 2,
            "control_socket_disable": True,
            "proc_name": "gotask-server",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> falcon.asgi.App[Any, Any]:
        from gotask import metrics  # after the fork: it reads where counters live when it is imported
        from gotask.api import rest
        from gotask.service import Service
        from gotask.ticker import AT_MOST_S, NETWORKED_S, Ticker

        backend = backends.open(self._settings.url)
        counted = metrics.counted(backend)
        pace = AT_MOST_S if is_embedded(self._settings.url) else NETWORKED_S
        # a store that is away must not keep a server from starting: it says so to who asks, and serves when it is back
        ticker = Ticker(backend, pace, at_first=lambda: logger.info("%s", backend.promise))
        ticker.start()
        edge = rest.Edge(Service(counted), self._gate)
        self._at_stop += [edge.longpoll.close]
        self._at_end += [edge.close, ticker.stop, backend.close]
        return rest.assemble(edge, metrics.exposition(backend), self._settings.metrics_port)

    def on_stop(self) -> None:
        for step in self._at_stop:
            step()

    def on_end(self) -> None:
        for step in self._at_end:
            step()


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's words in GoTask's log; what it says at info is for those who debug it."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log = logger
        self._access_log_enabled = False
        self.access_log.disabled = True
        for name in ("uvicorn.error", "asyncio"):
            other = logging.getLogger(name)
            other.handlers, other.propagate = logging.getLogger("gotask").handlers, False
            other.setLevel(logging.ERROR)

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        logger.debug(msg, *args, **kwargs)


def _listen(address: str, port: int) -> socket.socket:
    """A bound socket. gunicorn would try five times, a second each, before it said what is wrong."""
    try:
        family, kind, proto, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise NotConfigured(f"Cannot listen on {address} port {port}: {reason}; choose another address or port.") from None
    return listener


def _lift_limits() -> None:
    """Each connection is a file, and the usual soft limit of 1,024 is soon reached by long polls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
