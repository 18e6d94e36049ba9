"""The topmost process of a node: it forks, learns of deaths, has the dead's work recovered, and forks anew.

It has one thread, no connection and no user code, so there is nothing in it that a fork could break or that could hang.
Signals are not handled but waited for: the loop takes them one by one from the kernel's queue, and a death is known
because the dead was reaped, never by a time-out.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from gotask._core.ring import Segment, die_with_parent
from gotask.clock import monotonic
from gotask.errors import GotaskError, NotConfigured
from gotask.node import reload, worker
from gotask.node.frame import death
from gotask.node.notices import Notices
from gotask.node.worker import ASKED, READY
from gotask.settings import WorkerSettings
from gotask.task import Tasks

EX_CONFIG: Final = 78  #: exit code (sysexits.h) of a child that no restart can help: it stops the node
LOOK_S: Final = 0.25  #: seconds between two looks for workers that ignore a time limit
STUCK_SLACK_S: Final = 0.2  #: seconds past limit and grace before a worker is given up
SETTLE_S: Final = 5.0  #: seconds the dispatcher has for writing down what is known once the workers are gone
FAST_DEATH_S: Final = 1.0  #: a child that lived shorter is restarted after a pause that doubles
RESTART_MOST_S: Final = 5.0
SIGNALS: Final = frozenset({signal.SIGCHLD, READY, *ASKED})
log = logging.getLogger("gotask.node")


@dataclass
class Child:
    """One life of one process. `owner` is 0 for the dispatcher, which owns no slots."""

    pid: int
    name: str
    owner: int = 0
    index: int = -1
    born: float = field(default_factory=monotonic)
    ready: bool = False
    retiring: bool = False
    killed: bool = False
    give_up_at: float = 0.0  # condemned: when its neighbours' time is over


class Arbiter:
    """`dispatch` is what the dispatcher's process does, from its fork to its end; `join` is for the workers, see run.py."""

    def __init__(
        self,
        settings: WorkerSettings,
        segment: Segment,
        notices: Notices,
        dispatch: Callable[[], None],
        join: Callable[[Any], Any],
    ) -> None:
        self._settings = settings
        self._segment = segment
        self._notices = notices
        self._dispatch = dispatch
        self._join = join
        self._tasks: Tasks | None = None
        self._dispatcher: Child | None = None
        self._reloader: Child | None = None
        self._workers: dict[int, Child] = {}
        self._wanted = settings.processes
        self._pauses: dict[str, float] = {}  # name -> how long its next restart waits
        self._not_before: dict[str, float] = {}
        self._stop_at: float | None = None  # when what still runs is killed; None while the node is not stopping
        self._drained = False  # no dispatcher is wanted any more
        self._served = False  # a worker was ready once, so its app can be loaded
        self._roll_again = False
        self._exit_code = 0

    def run(self) -> int:
        """Keep the node going until it is told to stop; the exit code."""
        if self._settings.preload:
            self._tasks = worker.load_tasks(self._settings.app)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while self._dispatcher or self._workers or not (self._drained or self._exit_code):
            self._fork_missing()
            info = signal.sigtimedwait(SIGNALS, LOOK_S)
            if info is not None:
                self._take_signal(info)
            self._reap()
            self._end_stuck()
            self._finish_roll()
            self._enforce_stop()
        return self._exit_code

    # signals

    def _take_signal(self, info: signal.struct_siginfo) -> None:
        match info.si_signo:
            case signal.SIGTERM | signal.SIGINT:
                self._stop("asked again, so at once" if self._stop_at is not None else "asked to")
            case signal.SIGHUP:
                self._roll()
            case number if number == READY:
                for child in (self._dispatcher, *self._workers.values()):
                    if child is not None and child.pid == info.si_pid:
                        child.ready = True
                        self._served = self._served or child.owner != 0
                        self._pauses.pop(child.name, None)

    def _stop(self, why: str, code: int = 0) -> None:
        """The ladder: lease no more, give back what has not started, let the rest end in time; when asked again: now."""
        again = self._stop_at is not None
        log.info("Stopping: %s.", why)
        self._exit_code = self._exit_code or code
        self._stop_at = monotonic() + (0.0 if again or code else self._settings.shutdown_timeout)
        for child in self._workers.values():
            self._segment.stop(child.owner)
        if self._reloader and not self._reloader.killed:
            self._kill(self._reloader, "it is no longer needed")
        if self._dispatcher and not again:
            os.kill(self._dispatcher.pid, signal.SIGTERM)

    def _enforce_stop(self) -> None:
        if self._stop_at is None:
            return
        late = monotonic() - self._stop_at
        for child in self._workers.values():
            if late >= 0 and not child.killed:
                self._kill(child, "the node cannot start" if self._exit_code else "it did not end in time")
        if self._dispatcher is None and late >= SETTLE_S:
            self._drained = True  # it had its time, and dies again and again
        if self._dispatcher is None and (self._drained or self._exit_code):
            for child in self._workers.values():
                self._kill(child, "the node is down")
        elif self._dispatcher is not None and late >= SETTLE_S and not self._dispatcher.killed:
            self._kill(self._dispatcher, "it could not write down what it has in time")

    def _kill(self, child: Child, why: str) -> None:
        if not child.killed:
            child.killed = True
            log.warning("Killing %s (%d): %s.", child.name, child.pid, why)
            os.kill(child.pid, signal.SIGKILL)

    # new generation first, then the old one may go

    def _roll(self) -> None:
        if self._stop_at is not None or self._tasks is not None:
            log.warning("Not rolling: the node %s.", "is stopping" if self._stop_at else "runs with --preload")
            return
        self._roll_again = any(child.retiring for child in self._workers.values())
        if self._roll_again:  # one roll at a time: there are places for two generations
            return
        log.info("Rolling: new workers first, then the old ones may end.")
        for child in self._workers.values():
            child.retiring = True

    def _finish_roll(self) -> None:
        fresh = [child for child in self._workers.values() if not child.retiring]
        if len(fresh) == self._wanted and all(child.ready for child in fresh):
            for child in self._workers.values():
                if child.retiring:
                    self._segment.stop(child.owner)
            if self._roll_again and len(fresh) == len(self._workers):
                self._roll()

    # deaths

    def _reap(self) -> None:
        """Every child that died, known or not: as pid 1 a node also reaps what its tasks left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._dispatcher is not None and pid == self._dispatcher.pid:
                self._bury_dispatcher(self._dispatcher, status)
            elif self._reloader is not None and pid == self._reloader.pid:
                self._bury_reloader(self._reloader, status)
            elif pid in self._workers:
                self._bury_worker(self._workers.pop(pid), status)

    def _bury_dispatcher(self, child: Child, status: int) -> None:
        self._dispatcher = None
        self._drained = status == 0 or child.killed
        if status != 0:
            log.warning("%s (%d) %s.", child.name, child.pid, death(status))
        if os.waitstatus_to_exitcode(status) == EX_CONFIG:
            self._stop("the dispatcher cannot start", EX_CONFIG)
        elif status == 0 and self._stop_at is None:
            self._stop("the queues are empty")
        elif status != 0 and not child.killed:
            self._after_death(child, status)

    def _bury_reloader(self, child: Child, status: int) -> None:
        self._reloader = None
        if os.waitstatus_to_exitcode(status) == EX_CONFIG:
            self._stop("it cannot watch for changes", EX_CONFIG)
        else:
            self._after_death(child, status)

    def _bury_worker(self, child: Child, status: int) -> None:
        """All that it reported stands; what else it held is lost to it, and the dispatcher is told."""
        lost = self._segment.recover(child.owner, child.killed, status)
        if lost:
            log.warning("%s (%d) %s; jobs in its hands: %d.", child.name, child.pid, death(status), lost)
        if os.waitstatus_to_exitcode(status) == EX_CONFIG and not self._served:
            if self._stop_at is None:
                self._stop("a worker cannot start", EX_CONFIG)
        elif not child.retiring:
            self._after_death(child, status)

    def _after_death(self, child: Child, status: int) -> None:
        """Restart at once, unless it cannot even get ready."""
        if self._stop_at is not None and child.owner:
            return  # no next worker is wanted
        if monotonic() - child.born < FAST_DEATH_S and not child.ready:
            pause = min(RESTART_MOST_S, 2 * self._pauses.get(child.name, 0.05))
            self._pauses[child.name] = pause
            self._not_before[child.name] = monotonic() + pause
            log.warning("%s (%d) %s at once; the next one waits %.1f s.", child.name, child.pid, death(status), pause)

    def _end_stuck(self) -> None:
        """A worker whose task ignores its limit takes no more; its neighbours may end; then it is killed."""
        stuck = set(self._segment.stuck(STUCK_SLACK_S))
        now = monotonic()
        for child in self._workers.values():
            if child.owner not in stuck or child.killed:
                continue
            if not child.give_up_at:
                child.give_up_at = now + self._settings.shutdown_timeout
                self._segment.stop(child.owner)
            neighbours = self._segment.held(child.owner) - len(self._segment.overdue(child.owner))
            if neighbours <= 0 or now >= child.give_up_at:
                self._kill(child, "a task ignores its time limit or cancellation")

    # births

    def _fork_missing(self) -> None:
        if self._dispatcher is None and not (self._drained or self._exit_code) and self._may_start("dispatcher"):
            self._dispatcher = self._fork("dispatcher", self._dispatch)
            if self._stop_at is not None:
                os.kill(self._dispatcher.pid, signal.SIGTERM)
        if self._settings.reload and self._reloader is None and self._stop_at is None and self._may_start("reloader"):
            self._reloader = self._fork("reloader", reload.run)
        fresh = sum(not child.retiring for child in self._workers.values())
        for index in range(self._segment.workers):
            if fresh >= self._wanted or self._stop_at is not None:
                return
            name = f"worker-{index}"
            if any(child.index == index for child in self._workers.values()) or not self._may_start(name):
                continue
            owner = self._segment.enlist(index)
            shared = (self._settings, self._notices, self._tasks, self._join)
            work = partial(worker.run, self._segment, owner, self._slots_of(index), *shared)
            child = self._fork(name, work)
            child.owner, child.index = owner, index
            self._workers[child.pid] = child
            fresh += 1

    def _slots_of(self, index: int) -> int:
        """Of the node's concurrency, the share of one worker."""
        every, rest = divmod(self._settings.concurrency, self._wanted)
        return every + (index % self._wanted < rest)

    def _may_start(self, name: str) -> bool:
        return monotonic() >= self._not_before.get(name, 0.0)

    def _fork(self, name: str, work: Callable[[], None]) -> Child:
        """A child that does `work` and ends, and that never outlives this process.

        It starts with SIGNALS blocked, and takes them once it has said what they mean to it.
        """
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise NotConfigured(f"The arbiter has {threads} threads and cannot fork safely: load the app without --preload.")
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return Child(pid, name)
        code = 1
        try:
            die_with_parent(parent)
            with open("/proc/self/comm", "w") as comm:
                comm.write(f"gotask-{name}"[:15])
            work()
            code = 0
        except ProcessLookupError:
            pass
        except NotConfigured as error:
            log.error("%s", error)
            code = EX_CONFIG
        except GotaskError as error:
            log.error("%s", error)
        except BaseException:
            log.exception("%s failed.", name)
        finally:
            with suppress(OSError, ValueError):  # closed by a task, or nobody reads any more
                sys.stdout.flush()
                sys.stderr.flush()
            logging.shutdown()
            os._exit(code)
