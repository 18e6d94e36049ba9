"""A real server in an empty folder, on ports of its own, and ways to talk to it that an HTTP library would not allow."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0  #: seconds anything may take on a slow machine; what comes later is a failure


def until(what: str, look: Callable[[], T], patience: float = PATIENCE_S) -> T:
    """What `look` returns as soon as it is true; fails loudly when that takes too long."""
    end = time.monotonic() + patience
    while not (found := look()):
        if time.monotonic() > end:
            pytest.fail(f"waited {patience:g} s for {what}")
        time.sleep(0.02)
    return found


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()


class Server:
    """gotask-server as a process of its own."""

    def __init__(self, folder: Path, storage: str, *flags: str, **environ: str) -> None:
        self.http, self.metrics = free_ports(2)
        self.url = f"http://127.0.0.1:{self.http}"
        self.log = folder / f"server-{self.http}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GOTASK_")}
        ports = ["-http-port", str(self.http), "-metrics-port", str(self.metrics)]
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gotask.cli.server", "-storage", storage, *ports, *flags],
                cwd=folder,
                env=kept | {"PYTHONPATH": str(ROOT), "GOTASK_STATE_DIR": str(folder)} | environ,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def ready(self) -> "Server":
        until(f"the server to answer:\n{self.output}", self._answers)
        return self

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the server ended with {self.process.returncode}:\n{self.output}")
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def stored(self) -> int:
        """How many jobs there are."""
        return sum(self.client.get("/api/v1/metrics").json()["jobs"].values())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.http), timeout=PATIENCE_S)

    def raw(self, request: bytes) -> bytes:
        """Everything that comes back for these bytes until the server hangs up."""
        with self.connect() as peer:
            peer.sendall(request)
            return read_all(peer)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not stop:\n{self.output}")


def read_all(peer: socket.socket) -> bytes:
    parts = []
    while part := peer.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def answer_of(peer: socket.socket) -> bytes:
    """One answer with a Content-Length, head and body, from a connection that stays open."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = peer.recv(65_536)
        assert part, "the server hung up"
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split(b":")[1])
    while len(body) < length:
        part = peer.recv(65_536)
        assert part, "the server hung up"
        body += part
    return head + b"\r\n\r\n" + body
