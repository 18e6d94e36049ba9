"""The fixtures by which tests get servers: those that a whole session shares, and those that a test may break."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Final

import pytest

from tests.servers.certificates import Certificates
from tests.servers.chaosproxy import ChaosProxy
from tests.servers.fleets import Cluster, Sentinels
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

StartRedis = Callable[..., Redis]
StartPostgres = Callable[..., Postgres]
StartProxy = Callable[[str | Path], ChaosProxy]


MEMORY: Final = Path("/dev/shm")
ROOM: Final = 4 << 30  #: bytes; the files of a session grow to about one GiB, and the `memory` storages lie there too


def in_memory() -> Path | None:
    """A folder whose files never wait for a disk, if this machine has one with room; containers often have none."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None


class Servers:
    """What a session shares, each started when it is first asked for. A test keeps apart by a prefix and breaks nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = ExitStack()

    @cached_property
    def redis(self) -> Redis:
        """One server as most people run it: an append-only file, synced every second.

        It is never rewritten, which on two cores would be measured along with whatever runs beside it.
        """
        settings = {"appendonly": True, "appendfsync": "everysec", "auto_aof_rewrite_percentage": 0}
        return self._started.enter_context(Redis(self._folder / "redis", **settings))

    @cached_property
    def cluster(self) -> Cluster:
        return self._started.enter_context(Cluster(self._folder / "cluster"))

    @cached_property
    def sentinels(self) -> Sentinels:
        return self._started.enter_context(Sentinels(self._folder / "sentinels"))

    @cached_property
    def postgres(self) -> Postgres:
        """One server as it comes, which would have every commit on the disk when it is answered.

        Its files are in memory where there is room: a test that shares it cannot tell, and each of them waits for hundreds of
        syncs otherwise. Whoever kills a server or fills its disk starts one of its own, whose files are on the disk.
        """
        return self._started.enter_context(Postgres(self._folder / "postgres", home=in_memory()))

    @cached_property
    def pgbouncer(self) -> PgBouncer:
        """Before `postgres`, in transaction mode."""
        return self._started.enter_context(PgBouncer(self._folder / "pgbouncer", self.postgres))

    @cached_property
    def certificates(self) -> Certificates:
        return Certificates(self._folder / "certificates")

    def close(self) -> None:
        self._started.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers that this session shares."""
    made = Servers(tmp_path_factory.mktemp("servers"))
    yield made
    made.close()


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Starts a Redis of the test's own, to kill and to fill; it takes the arguments of `Redis` but the folder."""
    with ExitStack() as started:
        made: list[Redis] = []

        def start(**settings: object) -> Redis:
            made.append(Redis(tmp_path / f"redis-{len(made)}", **settings))  # type: ignore[arg-type]  # as Redis has them
            return started.enter_context(made[-1])

        yield start


@pytest.fixture
def start_postgres(tmp_path: Path) -> Iterator[StartPostgres]:
    """Starts a PostgreSQL of the test's own, to kill and to fill; it takes the arguments of `Postgres` but the folder."""
    with ExitStack() as started:
        made: list[Postgres] = []

        def start(**settings: object) -> Postgres:
            made.append(Postgres(tmp_path / f"postgres-{len(made)}", **settings))  # type: ignore[arg-type]  # as it has them
            return started.enter_context(made[-1])

        yield start


@pytest.fixture
def start_proxy() -> Iterator[StartProxy]:
    """Puts a proxy before an address, "host:port" or the path of a Unix socket."""
    with ExitStack() as started:
        yield lambda target: started.enter_context(ChaosProxy(target))
