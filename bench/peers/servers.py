"""The one server of a run: Redis or PostgreSQL, as people run it who want to keep their jobs."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol

from bench.node import free_port, until
from bench.peers.processes import started
from bench.postgres import SETTINGS
from tests.servers import postgres as tests_postgres


class Server(Protocol):
    kind: str  #: "redis" or "postgres": the word in braces that stands for its URL in a peer's commands
    url: str

    @property
    def title(self) -> str:
        """What it is, and how well it keeps what it was told."""
        ...

    def empty(self) -> None:
        """Nothing in it that another peer has left, neither jobs nor work to do."""
        ...


class Redis:
    kind = "redis"

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"

    @property
    def title(self) -> str:
        return f"Redis {self.info('redis_version')} (appendfsync everysec)"

    def ask(self, *words: str) -> str:
        done = subprocess.run(["redis-cli", "-p", str(self.port), *words], capture_output=True, text=True)
        return done.stdout.strip()

    def info(self, name: str) -> str:
        return dict(line.partition(":")[::2] for line in self.ask("INFO").splitlines()).get(name, "")

    def empty(self) -> None:
        """Nothing in memory and nothing in the log, so that every peer meets the same server."""
        self.ask("FLUSHALL")
        self.ask("FUNCTION", "FLUSH")
        self.ask("SCRIPT", "FLUSH")
        self.ask("BGREWRITEAOF")
        until("the log is rewritten", lambda: self.info("aof_rewrite_in_progress") + self.info("aof_rewrite_scheduled") == "00")


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """A server that fsyncs its log each second and never forgets. It rewrites the log between peers, not beside one."""
    server = Redis(free_port())
    settings = {
        "port": str(server.port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-percentage": "0",
        "maxmemory-policy": "noeviction",
    }
    command = ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]
    with started(command, folder, os.environ, folder / "redis.log"):
        until("the Redis server answers", lambda: server.ask("PING") == "PONG", 20)
        yield server


class Postgres:
    kind = "postgres"

    def __init__(self, server: tests_postgres.Postgres) -> None:
        self._server = server
        self.url = f"{server.url.rpartition('/')[0]}/peers"

    @property
    def title(self) -> str:
        ((version,),) = self._server.command("SHOW server_version")
        return f"PostgreSQL {version.split()[0]} (fsync and synchronous_commit on)"

    def empty(self) -> None:
        """A new database, and all that the last peer has changed is on the disk."""
        self._server.command("DROP DATABASE IF EXISTS peers WITH (FORCE)")
        self._server.command("CREATE DATABASE peers")
        self._server.command("CHECKPOINT")


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A server with the settings of bench/postgres.py: every commit that is waited for is on the disk."""
    with tests_postgres.Postgres(folder / "postgres", **SETTINGS) as server:
        yield Postgres(server)


STARTS: Final[dict[str, Callable[[Path], AbstractContextManager[Server]]]] = {"redis": redis, "postgres": postgres}
