"""Real processes in an empty folder, with ports and a state directory of their own, started as a user would start them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0  #: seconds anything may take on a slow machine; what comes later is a failure


def until(what: str, look: Callable[[], T], patience: float = PATIENCE_S) -> T:
    """What `look` returns as soon as it is true; fails loudly when that takes too long."""
    end = time.monotonic() + patience
    while True:
        with suppress(OSError, ValueError):
            found = look()
            if found:
                return found
        if time.monotonic() > end:
            pytest.fail(f"waited {patience:g} s for {what}")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()


def command(name: str) -> list[str]:
    """The installed program of that name, or the module it would run if the package is not installed."""
    script = Path(sys.executable).with_name(name)
    module = {"gotask": "gotask", "gotask-server": "server", "gotask-worker": "worker"}[name]
    return [str(script)] if script.exists() else [sys.executable, "-m", f"gotask.cli.{module}"]


def hears_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that such tests start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """A running program whose output lands in a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, patience: float = PATIENCE_S) -> int:
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {patience:g} s:\n{self.output}")

    def stop(self, number: int = signal.SIGTERM, patience: float = PATIENCE_S) -> int:
        self.process.send_signal(number)
        return self.ended(patience)

    def children(self) -> dict[str, int]:
        """The server and the worker under `gotask up`, by name."""
        found = {}
        for pid in offspring(self.process.pid):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_text()
                for name in ("server", "worker"):
                    if f"gotask.cli.{name}" in line:
                        found[name] = pid
        return found


def offspring(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Ground:
    """An empty folder to type commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.metrics, self.health = free_ports(3)
        self.url = f"http://127.0.0.1:{self.http}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GOTASK_")}
        self.env = kept | {
            "PYTHONPATH": f"{ROOT}",
            "GOTASK_STATE_DIR": str(folder / "state"),
            "GOTASK_HTTP_PORT": str(self.http),
            "GOTASK_METRICS_PORT": str(self.metrics),
            "GOTASK_HEALTH_PORT": str(self.health),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        }
        self.programs: list[Program] = []

    def run(
        self, name: str, *argv: str, code: int | None = 0, stdin: str = "", timeout: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end and check its exit code. No traceback may ever show."""
        done = subprocess.run(
            [*command(name), *argv], cwd=self.folder, env=self.env, input=stdin, capture_output=True, text=True, timeout=timeout
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert code is None or done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def gotask(self, *argv: str, code: int | None = 0, stdin: str = "") -> str:
        return self.run("gotask", *argv, code=code, stdin=stdin).stdout

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self.gotask(*argv, "--json", code=code))

    def start(self, name: str, *argv: str) -> Program:
        log = self.folder / f"program-{len(self.programs)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command(name), *argv],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                preexec_fn=hears_ctrl_c,
            )
        program = Program(process, log)
        self.programs.append(program)
        return program

    def up(self, *argv: str) -> Program:
        """`gotask up`, once it serves and its node is ready."""
        program = self.start("gotask", "up", *argv)
        self.ready(program)
        return program

    def apart(self, url: str, nodes: int = 1) -> list[Program]:
        """A server and nodes, each started by itself, once all are ready. The first node has the health port."""
        self.env["GOTASK_STORAGE"] = url
        server = self.start("gotask-server")
        ports = [[], *[["-health-port=0"]] * (nodes - 1)]
        started = [self.start("gotask-worker", "-c", "2", f"-worker-id=node{n}", *port) for n, port in enumerate(ports)]
        until("the server", lambda: self.get("/readyz")[0] == 200)
        until("the node", lambda: http(f"http://127.0.0.1:{self.health}/readyz")[0] == 200)
        until("all nodes", lambda: self.get("/api/v1/workers")[1]["count"] == nodes)
        return [server, *started]

    def ready(self, program: Program) -> None:
        def look() -> bool:
            assert program.process.poll() is None, f"ended with {program.process.returncode}:\n{program.output}"
            return self.get("/ready")[0] == 200 and http(f"http://127.0.0.1:{self.health}/readyz")[0] == 200

        until("server and node", look)

    def work_every_way(self) -> None:
        """A job that is awaited, one that is made for later, known by its key, cancelled and run after all; a pause."""
        assert self.json("job", "submit", "math", "--payload", '{"operation": "add", "a": 10, "b": 5}', "--wait")["result"]
        id = self.json("job", "submit", "echo", "--delay", "600", "--unique-key", "k", "--priority", "3")["id"]
        assert self.json("job", "submit", "echo", "--unique-key", "k")["id"] == id
        self.gotask("job", "cancel", id)
        self.gotask("job", "retry", id)
        assert until("it ran", lambda: self.get(f"/api/v1/jobs/{id}")[1]["status"] == "SUCCESS")
        self.gotask("queue", "pause", "mail")
        self.gotask("queue", "resume", "mail")

    def get(self, path: str) -> tuple[int, Any]:
        return http(self.url + path)

    def bash(self, script: str) -> str:
        """A script as the documents print it, with this ground's port instead of theirs."""
        script = script.replace("http://localhost:8080", self.url).replace(
            "http://localhost:9090", f"http://127.0.0.1:{self.metrics}"
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace("curl ", "curl -sS --fail-with-body ")],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def clear(self) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.process.terminate()
                try:
                    program.process.wait(15)
                except subprocess.TimeoutExpired:
                    program.process.kill()
                    program.process.wait()


def http(url: str) -> tuple[int, Any]:
    """Status and body of a GET, decoded if it is JSON."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as e:
        with e:
            status, body = e.code, e.read()
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode()


def one_line(text: str) -> str:
    """The only line of `text`, which must be a sentence."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert re.search(r"[.?]$|--help$", lines[0]), text
    return lines[0]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    it = Ground(tmp_path)
    yield it
    it.clear()


@pytest.fixture
def curl() -> None:
    if shutil.which("curl") is None:
        assert not os.environ.get("CI"), "curl is missing, and a skip in CI is a hole that nobody sees"
        pytest.skip("curl is not installed")
