"""Nodes in network namespaces of their own, each with a cable to one switch, which can be pulled and plugged in again.

A pulled cable says nothing to anybody: no reset and no refusal, only silence at both ends. Needs root and iproute2.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import pytest

from tests.crash.harness import Node, alive, kill
from tests.servers.processes import need

BITS: Final = 24


def need_root() -> None:
    """Skip the test without the right to make networks; fail in CI, where a skip is a hole that nobody sees."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail("network namespaces need root, and in CI their tests must run")
    pytest.skip("network namespaces need root")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Switch:
    """A bridge of this machine with an address of its own, `host`, and namespaces plugged into it by name."""

    def __init__(self) -> None:
        need("ip", "iproute2")
        need_root()
        self._id = f"{random.SystemRandom().randrange(16**6):06x}"
        self._net = f"10.{random.SystemRandom().randrange(200, 250)}.{random.SystemRandom().randrange(250)}"
        self.host = f"{self._net}.1"
        self._bridge = f"gt{self._id}"
        self._spaces: dict[str, int] = {}

    def __enter__(self) -> Self:
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.host}/{BITS}", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._spaces:
            with suppress(AssertionError):  # one that could not be made whole
                ip("netns", "del", self.space(name))
        ip("link", "del", self._bridge)

    def space(self, name: str) -> str:
        """What a namespace is called by `ip netns`."""
        return f"gt-{self._id}-{name}"

    def _port(self, name: str) -> str:
        return f"gp{self._id}{self._spaces[name]}"

    def add(self, name: str) -> None:
        """Make a namespace with a cable to the switch."""
        at = self._spaces[name] = len(self._spaces)
        space, port, inside = self.space(name), self._port(name), f"gi{self._id}{at}"
        ip("netns", "add", space)
        ip("link", "add", port, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", space)
        ip("link", "set", port, "master", self._bridge)
        ip("-n", space, "addr", "add", f"{self._net}.{at + 2}/{BITS}", "dev", inside)
        ip("-n", space, "link", "set", inside, "up")
        ip("-n", space, "link", "set", "lo", "up")
        self.plug(name)

    def pull(self, name: str) -> None:
        """Pull the cable of a namespace out of the switch."""
        ip("link", "set", self._port(name), "down")

    def plug(self, name: str) -> None:
        ip("link", "set", self._port(name), "up")


class CabledNode(Node):
    """A node in a namespace."""

    def __init__(self, space: str, storage: str, folder: Path, *flags: str) -> None:
        self._space = space
        super().__init__(storage, folder, *flags)

    def _start(self) -> "subprocess.Popen[bytes]":
        inside = ["ip", "netns", "exec", self._space]  # becomes what it starts, so that the process is the node's
        command = [*inside, sys.executable, "-m", "gotask.cli.worker", "-A", self._app, "--health-port=0", *self._flags]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=self._env, stdout=log, stderr=log)


@contextmanager
def cabled(switch: Switch, name: str, storage: str, folder: Path, *flags: str) -> Iterator[CabledNode]:
    """A node with a namespace, a cable and a folder of its own, for the length of a test."""
    switch.add(name)
    own = folder / name
    own.mkdir(mode=0o700)
    started = CabledNode(switch.space(name), storage, own, *flags, "--worker-id", name)
    try:
        started.up()
        yield started
    finally:
        for pid in started.family():
            if alive(pid):
                kill(pid)
        started.process.wait()
