"""PgBouncer in transaction mode before one PostgreSQL: each transaction may have another session."""

from pathlib import Path

from tests.servers.postgres import Postgres, as_nobody, own
from tests.servers.processes import Process, free_ports, need, until


class PgBouncer(Process):
    def __init__(self, folder: Path, server: Postgres, sessions: int = 4, **settings: object) -> None:
        need("pgbouncer")
        self._server, self.port = server, free_ports(1)[0]
        home = server.socket_folder  # a folder that its user may enter
        users, conf = home / f"users-{self.port}", home / f"bouncer-{self.port}.ini"
        users.write_text('"postgres" "pw"\n')
        conf.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
            f"default_pool_size = {sessions}\nmax_client_conn = 200\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        own(users, conf)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__([*as_nobody(), "pgbouncer", str(conf)], home, folder / "bouncer.log")

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        super().start()
        until("PgBouncer answers", lambda: self._server.answers(self.url))

    def __enter__(self) -> "PgBouncer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
