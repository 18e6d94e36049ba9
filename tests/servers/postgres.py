"""One PostgreSQL server that a test owns: started on a free port, killed, frozen and started again at will.

    with Postgres(tmp_path, fsync="on") as server:
        server.command("CREATE DATABASE other")
        server.kill()
        server.start()

Settings are those of postgresql.conf. PostgreSQL refuses to run as root; then it runs as the user `nobody`.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import psycopg

from tests.servers.certificates import Certificates
from tests.servers.processes import STOP_S, Process, free_ports, is_alive, need, until

ANSWER_S: Final = 10  #: seconds a command may take; the servers are on this machine and hold little
NOTICE_S: Final = 5.0  #: seconds after which a postmaster kills what did not end when told to; a dead one cannot
NOBODY: Final = 65534  #: user and group


def program(name: str) -> str:
    """Where a program of the newest installed PostgreSQL is: Debian keeps them apart from others."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4].split(".")[0]))
    if found:
        return str(found[-1])
    need(name, "postgresql")
    return str(shutil.which(name))


def as_nobody() -> list[str]:
    """What a command begins with that is not to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig=KILL"]


def own(*paths: Path) -> None:
    """Make these the files of whoever `as_nobody` is."""
    for path in paths:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)


@cache
def fresh_data() -> Path:
    """The files of a server that never ran. `initdb` takes a second or two, and a copy of them a tenth of that."""
    made = Path(tempfile.mkdtemp(prefix="gotask-pg-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    (made / "pw").write_text("pw\n")
    own(made, made / "pw")
    done = subprocess.run(
        [*as_nobody(), program("initdb"), "-D", str(made / "data"), "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync",
         f"--pwfile={made / 'pw'}", "--auth-local=trust", "--auth-host=scram-sha-256"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made / "data"


class Postgres(Process):
    """A server on 127.0.0.1 with its files in a folder of its own. It outlives neither its `with` block nor the tests.

    `folder` takes its log, and `home` its files if they are not to lie where temporary files do. With `certificates` it speaks
    TLS too. The superuser is `postgres`, with the password `pw`; by the socket in `socket_folder` none is asked for.
    """

    DEFAULTS: ClassVar[Mapping[str, object]] = {
        "max_connections": 100, "shared_buffers": "64MB", "max_wal_size": "1GB", "autovacuum_naptime": "10s",
        "log_min_messages": "warning", "dynamic_shared_memory_type": "mmap",
    }  # fmt: skip

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        certificates: Certificates | None = None,
        home: Path | None = None,
        **settings: object,
    ) -> None:
        need("setpriv", "util-linux")
        postgres = program("postgres")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_ports(1)[0]
        # not in pytest's folder, which only its own user may enter; and short, since a socket's path may not be long
        self._made = Path(tempfile.mkdtemp(prefix="gotask-pg-", dir=home))
        self.data, self.socket_folder = self._made / "data", self._made / "run"
        self.socket_folder.mkdir()
        own(self._made, self.socket_folder)
        subprocess.run(["cp", "-a", str(fresh_data()), str(self.data)], check=True)
        doors: dict[str, object] = {"port": self.port, "listen_addresses": "127.0.0.1"}
        doors["unix_socket_directories"] = self.socket_folder
        if certificates is not None:
            doors |= {"ssl": "on", "ssl_cert_file": self._copy(certificates.cert), "ssl_key_file": self._copy(certificates.key)}
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in {**self.DEFAULTS, **doors, **settings}.items())
        super().__init__([*as_nobody(), postgres, "-D", str(self.data)], self._made, folder / "log")

    def _copy(self, path: Path) -> Path:
        to = self._made / path.name
        shutil.copy(path, to)
        own(to)
        to.chmod(0o600)
        return to

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its database `postgres`, by TCP, as the superuser. It has no query."""
        return f"postgres://postgres:pw@{self.address}/postgres"

    @property
    def unix_url(self) -> str:
        """The same by its Unix socket; it has a query."""
        return f"postgres:///postgres?host={self.socket_folder}&port={self.port}&user=postgres"

    def start(self) -> None:
        """Start it (again: same port, folder and settings), and return once it answers."""
        super().start()

        def up() -> bool:
            assert self.running, f"postgres ended at once:\n{self.log}"
            return self.answers()

        try:
            until("PostgreSQL answers", up)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to end, without waiting for its clients to leave first."""
        if self.running:
            self.resume()
            for number in (signal.SIGINT, signal.SIGQUIT):  # fast, then at once: a client may be stuck on its way in
                os.kill(self.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self.wait(STOP_S / 5)
                    return
            self.kill()  # it waits for a client that came too late and does not go, and signals that one's process no more

    def end(self, how: signal.Signals) -> None:
        """What `pg_ctl stop` does: SIGINT is its mode "fast", SIGQUIT "immediate", after which the log is replayed."""
        os.kill(self.pid, how)
        self.wait(STOP_S)

    def kill(self) -> None:
        """SIGKILL the postmaster, and return once its backends are gone: before, no other server can start here.

        One that waits for a lock of a process which died in a panic notices nothing. A postmaster kills it after five seconds.
        """
        left = self._backends() if self.running else []
        super().kill()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        noticed = time.monotonic() + NOTICE_S

        def gone() -> bool:
            for pid in filter(is_alive, left if time.monotonic() > noticed else []):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not any(map(is_alive, left))

        until("the backends of a dead postmaster are gone", gone, STOP_S)

    def suspend(self) -> None:
        """Freeze it and all its backends: connections stay open, and nothing is answered."""
        super().suspend()
        for pid in self._backends():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._backends():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        super().resume()

    def _backends(self) -> list[int]:
        """The processes of its connections, and those that work for all."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in listed.split()]

    def answers(self, url: str = "") -> bool:
        with suppress(psycopg.Error):
            self.command("SELECT 1", url=url)
            return True
        return False

    def command(self, statement: str, *values: Any, url: str = "") -> list[tuple[Any, ...]]:
        """The rows of one statement, as the superuser unless `url` says otherwise. Raises psycopg's errors."""
        with psycopg.connect(url or self.url, autocommit=True, connect_timeout=ANSWER_S) as link:
            cursor = link.execute(statement, values or None)  # type: ignore[arg-type]  # statements are the tests' own
            return cursor.fetchall() if cursor.description is not None else []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._made, ignore_errors=True)
