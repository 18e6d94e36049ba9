"""A worker with many slots: `async def` tasks on one event loop, plain `def` tasks in threads."""

import asyncio
import ctypes
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from gotask._core.ring import ALONE
from gotask.errors import Cancelled, TimeLimit
from gotask.node.frame import Frame
from gotask.node.run import Runner
from gotask.node.watchdog import Watchdog
from gotask.task import Task
from gotask.verdict import Interrupt, interruption

log = logging.getLogger("gotask.node")
CLAIM_S: Final = 0.5  #: seconds one claim may sleep before the claimer looks around
_raise_in_thread: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Exposure:
    """A run that may be interrupted: by cancelling its coroutine, or by an exception set in its thread."""

    def __init__(self, coroutine: asyncio.Task[None] | None = None) -> None:
        self.coroutine = coroutine
        self.thread = threading.get_ident()
        self.why: Interrupt | None = None


class ConcurrentWorker:
    def __init__(self, runner: Runner, slots: int, max_jobs: int, max_memory: int) -> None:
        self._runner = runner
        self._slots = slots
        self._max_jobs = max_jobs
        self._watchdog = Watchdog(runner.segment, runner.owner, self._interrupt, max_memory)
        self._free = threading.Semaphore(slots)
        self._busy = 0
        self._done = False
        self._lock = threading.Lock()  # over _busy and _exposed; and a thread is interrupted only while it holds its entry
        self._exposed: dict[int, Exposure] = {}
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="task")

    def run(self) -> None:
        """Work until told to stop, or until it is time for a fresh process."""
        self._watchdog.start()
        claimer = threading.Thread(target=self._claim_all, name="claimer")
        claimer.start()
        while not self._done:  # until the claimer has seen the last run end
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # of a task's own child; its job hears of it, others must not
                log.warning("A coroutine that a task started raised %r; the worker goes on.", error)
        claimer.join()
        self._threads.shutdown()
        self._loop.close()

    def _claim_all(self) -> None:
        """The claimer's thread. Whatever ends it ends the worker, since one that claims nothing is worth nothing."""
        try:
            self._claim_until_told()
            self._wait_until_idle()
        finally:
            self._done = True
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _claim_until_told(self) -> None:
        segment, owner = self._runner.segment, self._runner.owner
        count = 0
        while not (self._watchdog.too_big or (self._max_jobs and count >= self._max_jobs)):
            if not self._free.acquire(timeout=CLAIM_S):
                continue
            # A suspect runs alone: one worker lets its runs end without taking more, so that one can start.
            if self._busy and segment.waiting(ALONE) and segment.is_first(owner):
                self._free.release()
                self._make_room()
                continue
            claimed = segment.claim(owner, not self._busy, CLAIM_S)
            if claimed is None:
                self._free.release()
                if segment.stopping(owner):
                    break
                continue
            count += 1
            self._start(*claimed)

    def _make_room(self) -> None:
        """Take nothing until idle, or until another worker has taken what must run alone."""
        while self._busy and self._runner.segment.waiting(ALONE) and not self._runner.segment.stopping(self._runner.owner):
            time.sleep(CLAIM_S / 10)

    def _wait_until_idle(self) -> None:
        for _ in range(self._slots):
            self._free.acquire()
        self._free.release(self._slots)

    def _start(self, ticket: int, body: bytes) -> None:
        with self._lock:
            self._busy += 1
        opened = self._runner.open(ticket, body)
        if opened is None:
            self._ended(ticket)
        elif opened[1].is_async:
            self._loop.call_soon_threadsafe(self._spawn, ticket, *opened)
        else:
            self._threads.submit(self._run_in_thread, ticket, *opened)

    def _spawn(self, ticket: int, job: Frame, task: Task[..., Any]) -> None:
        coroutine = self._loop.create_task(self._run_in_loop(ticket, job, task))
        with self._lock:
            self._exposed[ticket] = Exposure(coroutine)

    async def _run_in_loop(self, ticket: int, job: Frame, task: Task[..., Any]) -> None:
        try:
            value = await task.call(task.decode(job.payload), self._runner.context(ticket, job, task))
        except BaseException as error:  # whatever a task raises ends its job, not the worker
            self._runner.failed(ticket, job, task, interruption(error, self._exposed[ticket].why))
        else:
            self._runner.done(ticket, task, value)
        finally:
            self._ended(ticket)

    def _run_in_thread(self, ticket: int, job: Frame, task: Task[..., Any]) -> None:
        try:
            try:
                arguments = task.decode(job.payload)
                context = self._runner.context(ticket, job, task)
                with self._lock:
                    self._exposed[ticket] = Exposure()
                value = task.call(arguments, context)
            finally:  # apart from the except clause, which catches what strikes at the door of _hide
                self._hide(ticket)
        except BaseException as error:  # whatever a task raises ends its job, not the worker
            self._hide(ticket)
            self._runner.failed(ticket, job, task, error)
        else:
            self._runner.done(ticket, task, value)
        finally:
            self._ended(ticket)

    def _hide(self, ticket: int) -> None:
        """Past this, no exception can strike the thread. The one that was set may still strike in here, once."""
        try:
            self._take_back(ticket)
        except (TimeLimit, Cancelled):
            self._take_back(ticket)

    def _take_back(self, ticket: int) -> None:
        with self._lock:
            exposure = self._exposed.pop(ticket, None)
            if exposure is not None and exposure.why is not None:
                _raise_in_thread(ctypes.c_ulong(exposure.thread), None)

    def _ended(self, ticket: int) -> None:
        with self._lock:
            self._busy -= 1
            self._exposed.pop(ticket, None)
        self._free.release()

    def _interrupt(self, ticket: int, why: Interrupt) -> bool:
        with self._lock:
            exposure = self._exposed.get(ticket)
            if exposure is None or exposure.why is not None:
                return exposure is not None
            exposure.why = why
            if exposure.coroutine is not None:
                self._loop.call_soon_threadsafe(exposure.coroutine.cancel)
            else:
                _raise_in_thread(ctypes.c_ulong(exposure.thread), ctypes.py_object(why))
        return True
