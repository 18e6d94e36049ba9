"""Keeps child programs running: restarts what dies, passes signals on, and leaves nothing behind.

One thread; signals are blocked and waited for, so there are no handlers and no races. As PID 1 of a container it also reaps
the orphans that end up with it. Children are told by the kernel when it dies, however it dies.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from gotask import clock
from gotask.cli import exits

LOG: Final = logging.getLogger("gotask.up")
FIRST_DELAY_S: Final = 0.25  #: seconds before the first restart; doubled for each further one
LAST_DELAY_S: Final = 30.0
SETTLED_S: Final = 60.0  #: a child that lived so long starts again with the first delay
NOW_S: Final = 3.0  #: seconds between the second signal and SIGKILL
PR_SET_PDEATHSIG: Final = 1
WATCHED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
FATAL: Final = (exits.USAGE, exits.CONFIG)  #: exit codes that say: the same again would end the same
DEATHS: Final = 5  #: ends of one child in a row, each before it had settled, after which that is told


@dataclass
class Child:
    """One program to keep running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    leave_rest: bool = True  # whether what a dead child leaves in its group ends by itself
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    delay: float = FIRST_DELAY_S
    due: float = 0.0  # when to start it, by clock.monotonic
    deaths: int = 0  # in a row, each before it had settled

    def start(self) -> None:
        parent = os.getpid()
        self.started = clock.monotonic()
        # a group of its own, so that Ctrl-C reaches it once, through us, and not a second time from the terminal
        self.process = subprocess.Popen(self.argv, env=dict(self.env), process_group=0, preexec_fn=lambda: die_with(parent))

    def signal(self, number: int, *, group: bool = False) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)

    def ended(self, now: float) -> None:
        """Note its end, and when to start it anew."""
        if not self.leave_rest:
            self.signal(signal.SIGKILL, group=True)
        self.process = None
        settled = now - self.started > SETTLED_S
        self.deaths = 1 if settled else self.deaths + 1
        self.delay = FIRST_DELAY_S if settled else min(self.delay * 2, LAST_DELAY_S)
        self.due = now + self.delay


def die_with(parent: int) -> None:
    """In the child, before exec: SIGTERM when the parent's thread ends; at once if it has already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    if os.getppid() != parent:
        os._exit(exits.FAILED)


@dataclass
class Supervisor:
    """`run` returns the exit code once all children have ended."""

    children: list[Child]
    patience: float  # seconds a graceful stop may take
    ready: Callable[[], bool] = lambda: True  # called a few times a second until it says True
    until: str = ""  # the child whose good end ends the whole
    stops: int = field(default=0, init=False)
    code: int = field(default=exits.OK, init=False)
    kill_at: float = field(default=float("inf"), init=False)
    announced: bool = field(default=False, init=False)  # all children were ready once

    def run(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        while not self.stops or any(child.process for child in self.children):
            now = clock.monotonic()
            self.start_due(now)
            self.kill_late(now)
            self.announced = self.announced or (self.stops == 0 and self.ready())
            waits = [child.due - now for child in self.children if child.process is None and not self.stops]
            deadline = min([*waits, self.kill_at - now, 1.0 if self.announced or self.stops else 0.1])
            info = signal.sigtimedwait(WATCHED, max(0.0, deadline))
            if info is not None and info.si_signo != signal.SIGCHLD:
                self.told(info.si_signo)
            self.reap()
        return self.code

    def start_due(self, now: float) -> None:
        for child in self.children:
            if child.process is None and not self.stops and child.due <= now:
                child.start()

    def kill_late(self, now: float) -> None:
        if now >= self.kill_at:
            for child in self.children:
                child.signal(signal.SIGKILL, group=True)

    def told(self, number: int) -> None:
        if number == signal.SIGHUP:
            for child in self.children:
                child.signal(signal.SIGHUP)
        else:
            self.stop(self.code)

    def stop(self, code: int) -> None:
        """Ask all to end; the second time at once. The rest is killed when its time is up."""
        self.stops += 1
        self.code = code
        self.kill_at = clock.monotonic() + (self.patience if self.stops == 1 else NOW_S)
        for child in self.children:
            child.signal(signal.SIGTERM)

    def reap(self) -> None:
        """Every child that has ended, ours or, as PID 1, an orphan's."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self.children:
                if child.process is not None and child.process.pid == pid:
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    self.ended(child, child.process.returncode)

    def ended(self, child: Child, code: int) -> None:
        child.ended(clock.monotonic())
        if self.stops:
            return
        if code in FATAL:
            exits.say(f"The {child.name} cannot start like this (see above), so everything is stopped.")
            self.stop(exits.USAGE)
        elif code == 0 and self.until == child.name:
            self.stop(exits.OK)
        else:
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            if child.deaths >= DEATHS and not self.announced:
                exits.say(
                    f"The {child.name} ended {child.deaths} times before it was ready (see above): mend that, then start again."
                )
                self.stop(exits.FAILED)
                return
            LOG.warning("the %s ended %s; starting it again in %.2g s", child.name, how, child.delay)
            if child.deaths == DEATHS:
                exits.say(f"The {child.name} has ended {child.deaths} times in a row: see above why, or stop all with Ctrl-C.")


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this very interpreter."""
    return [sys.executable, "-m", module, *arguments]
