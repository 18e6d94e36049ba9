"""One Redis server that a test owns: started on a free port, killed, frozen and started again at will.

    with Redis(tmp_path, appendonly=True, appendfsync="always") as server:
        server.command("SET", "key", "value")
        server.kill()
        server.start()

Settings are those of redis.conf, with `_` for `-`; True and False become yes and no, and a list becomes a line each.
"""

import socket
import ssl
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from urllib.parse import quote

from redis.connection import Connection, SSLConnection
from redis.exceptions import RedisError

from tests.servers.certificates import Certificates
from tests.servers.processes import Process, free_ports, need, until

ANSWER_S: Final = 10.0  #: seconds a command may take; the servers are on this machine and hold little

Setting = str | int | bool | Path | list[str]


class Redis(Process):
    """A server on 127.0.0.1 with its files in `folder`. It outlives neither its `with` block nor the tests.

    With `certificates` it speaks only TLS. `login` is (user, password) for `url` and `command`, where the settings demand it:
    `requirepass="x"` wants ("", "x"), and `user=["default off", "app on >x ~* &* +@all"]` wants ("app", "x").
    """

    DEFAULTS: ClassVar[Mapping[str, Setting]] = {"save": "", "maxmemory_policy": "noeviction"}
    FLAGS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        login: tuple[str, str] = ("", ""),
        certificates: Certificates | None = None,
        **settings: Setting,
    ) -> None:
        need("redis-server")
        need("setpriv", "util-linux")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.login, self.certificates = folder, login, certificates
        self.port = port or free_ports(1)[0]
        self.path = Path(str(settings["unixsocket"])) if "unixsocket" in settings else None
        conf = folder / "redis.conf"
        conf.write_text(_conf({"bind": "127.0.0.1", "dir": folder, **self._doors(), **self.DEFAULTS, **settings}))
        super().__init__(["redis-server", str(conf), *self.FLAGS], folder, folder / "log")

    def _doors(self) -> dict[str, Setting]:
        tls = self.certificates
        if tls is None:
            return {"port": self.port}
        files = {"tls_ca_cert_file": tls.ca, "tls_cert_file": tls.cert, "tls_key_file": tls.key}
        return {"port": 0, "tls_port": self.port, "tls_auth_clients": False, **files}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its database 0, by TCP or TLS, with the login if there is one. It has a query only if it is `rediss`."""
        user, password = (quote(word, safe="") for word in self.login)
        place = f"{user}:{password}@{self.address}" if password else self.address
        return f"rediss://{place}/0?ssl_ca_certs={self.certificates.ca}" if self.certificates else f"redis://{place}/0"

    @property
    def unix_url(self) -> str:
        """Its database 0 by its Unix socket; there is one only if `unixsocket` was set."""
        assert self.path is not None, "it was not told to have a Unix socket"
        return f"unix://{self.path}?db=0"

    def start(self) -> None:
        """Start it (again: same port, folder and settings), and return once it answers and has loaded what it had."""
        super().start()

        def up() -> bool:
            assert self.running, f"redis-server ended at once:\n{self.log}"
            return self.answers()

        try:
            until("Redis answers", up)
        except BaseException:
            self.kill()
            raise

    def answers(self) -> bool:
        """Whether a PING is answered, if only with a demand for a password; not while it loads, sleeps or is dead."""
        with suppress(OSError), closing(self._dial()) as line:
            line.sendall(b"PING\r\n")
            return line.recv(100).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        return False

    def _dial(self) -> socket.socket:
        raw = socket.create_connection(("127.0.0.1", self.port), 1.0)
        if self.certificates is None:
            return raw
        with raw:  # which wrapping takes over, unless it fails
            return ssl.create_default_context(cafile=self.certificates.ca).wrap_socket(raw, server_hostname="127.0.0.1")

    def command(self, *words: str | bytes | int | float, database: int = 0) -> Any:
        """The plain answer to one command on a connection of its own: text, integers, lists of them, None.

        Raises redis.exceptions.ResponseError for an error answered, ConnectionError or TimeoutError for no answer.
        """
        line = self._connection(database)
        try:
            line.send_command(*words)
            return line.read_response()
        finally:
            line.disconnect()

    def _connection(self, database: int) -> Connection:
        user, password = self.login
        said: dict[str, Any] = {
            "db": database,
            "username": user or None,
            "password": password or None,
            "protocol": 2,
            "decode_responses": True,
            "socket_timeout": ANSWER_S,
        }
        if self.certificates:
            return SSLConnection(host="127.0.0.1", port=self.port, ssl_ca_certs=str(self.certificates.ca), **said)
        return Connection(host="127.0.0.1", port=self.port, **said)

    def facts(self, *words: str) -> dict[str, str]:
        """The answer to `INFO section` or `CLUSTER INFO`, as a dictionary; empty while it does not answer."""
        try:
            lines = self.command(*words).splitlines()
        except RedisError:
            return {}
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def forget(self, prefix: str) -> int:
        """Delete the keys that begin so, a thousand at a time; how many there were."""
        cursor, gone = "0", 0
        while True:
            cursor, keys = self.command("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
            gone += self.command("UNLINK", *keys) if keys else 0
            if cursor == "0":
                return gone

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _conf(settings: Mapping[str, Setting]) -> str:
    def word(value: Setting) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f'"{value}"' if value == "" or isinstance(value, Path) else str(value)

    lines = []
    for name, value in settings.items():
        lines += [f"{name.replace('_', '-')} {word(one)}" for one in (value if isinstance(value, list) else [value])]
    return "\n".join(lines) + "\n"
