"""A server's process: it starts, stops, dies and freezes as a test says, and never outlives the tests."""

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import pytest

START_S: Final = 30.0  #: seconds a server may take to answer on a busy machine
STOP_S: Final = 15.0  #: seconds it may take to end when asked to


def need(program: str, package: str = "") -> None:
    """Skip the test if a program is missing; fail in CI, where a skip is a hole that nobody sees."""
    if shutil.which(program) is None:
        says = f"{program} is not installed (on Debian: apt-get install {package or program})"
        if os.environ.get("CI"):
            pytest.fail(f"{says}, and in CI its tests must run")
        pytest.skip(says)


def until(what: str, condition: Callable[[], bool], seconds: float = START_S) -> None:
    """Look again and again; fail with `what` it was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, each given once by this process.

    They lie below the range that outgoing connections are given theirs from. In that range a client which calls a dead
    server again and again is at last connected to itself, and the server cannot come back on its port.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(lowest // 2, lowest)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            found.append(port)
    return found


@cache
def _starter() -> ThreadPoolExecutor:
    """One thread that lasts as long as this process does."""
    return ThreadPoolExecutor(1, "starter")


class Process:
    """A command that is killed by the kernel when this process ends, however it ends. Its output is appended to `log`."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path) -> None:
        self._command, self._folder, self._path = ["setpriv", "--pdeathsig", "KILL", "--", *command], folder, log
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; it must not be running."""
        assert not self.running, f"{self._command[4]} runs already"
        # The kernel's promise is to the thread that forked. That of a test which restarts a server may end before the test.
        if threading.current_thread() is threading.main_thread():
            self._popen = self._spawn()
        else:
            self._popen = _starter().submit(self._spawn).result()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self._path.open("ab") as log:
            return subprocess.Popen(self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        assert self._popen is not None, "it was never started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def log(self) -> str:
        """What it has said so far, in all its lives."""
        return self._path.read_text(errors="replace") if self._path.exists() else ""

    def stop(self) -> None:
        """Ask it to end, and wait; one that does not is killed after STOP_S and fails the test. It may have ended already."""
        if not self.running or self._popen is None:
            return
        self._popen.send_signal(signal.SIGCONT)
        self._popen.terminate()
        try:
            self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self._command[4]} did not end when asked to:\n{self.log}") from None

    def wait(self, seconds: float) -> None:
        """Until it has ended. Raises subprocess.TimeoutExpired."""
        if self._popen is not None:
            self._popen.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, also to one that is suspended. It may have ended already."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def suspend(self) -> None:
        """Freeze it: connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        until("it is frozen", lambda: _state(self.pid) == "T")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended already."""
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    """The kernel's letter for what it does, or nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
