"""A node or a server as a user starts it, for benchmarks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from gotask.backends import Backend
from gotask.model import NewJob, Queue
from gotask.states import State

PAYLOAD: Final = msgspec.Raw(json.dumps({"text": "x" * 88}).encode())  #: 100 bytes
assert len(bytes(PAYLOAD)) == 100


def until(what: str, condition: Callable[[], bool], seconds: float = 120.0, every: float = 0.002) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(module: str, storage: str, folder: Path, *flags: str) -> Iterator["subprocess.Popen[bytes]"]:
    env = {**os.environ, "GOTASK_STORAGE": storage, "GOTASK_STATE_DIR": str(folder), "PYTHONPATH": os.getcwd()}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", module, *flags], env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def node(storage: str, folder: Path, *flags: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A node that is ready for work, with the default number of workers."""
    port = free_port()
    with program("gotask.cli.worker", storage, folder, "-A", "bench.tasks:app", f"--health-port={port}", *flags) as process:
        until("the node is ready", lambda: answers(f"http://127.0.0.1:{port}/readyz"))
        yield process


@contextmanager
def server(storage: str, folder: Path) -> Iterator[str]:
    """A server that answers; its URL."""
    port = free_port()
    with program("gotask.cli.server", storage, folder, f"-http-port={port}", "--metrics-port=0"):
        url = f"http://127.0.0.1:{port}"
        until("the server answers", lambda: answers(f"{url}/ready"))
        yield url


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def fill(backend: Backend, count: int) -> None:
    """Accept `count` no-op jobs."""
    for at in range(0, count, 1000):
        backend.enqueue_many([NewJob(type="noop", payload=PAYLOAD) for _ in range(min(1000, count - at))])


def pause(backend: Backend, paused: bool) -> None:
    backend.put(Queue(name="default", paused=paused))


def ended(backend: Backend) -> int:
    return backend.counts().get(("default", State.SUCCESS), 0)


def drain_rate(backend: Backend, count: int) -> float:
    """Jobs per second at which a node that is up gets through `count` waiting jobs of a queue that is paused now."""
    before = ended(backend)
    begun = time.perf_counter()
    pause(backend, False)
    until("all jobs have ended", lambda: ended(backend) >= before + count, every=0.005)
    return count / (time.perf_counter() - begun)


def cpu_seconds(pid: int) -> float:
    """CPU that a process and its descendants have used, those that have ended included."""
    ticks = 0
    family = [pid]
    for each in family:
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            for path in Path(f"/proc/{each}/task").glob("*/children"):
                family += [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
