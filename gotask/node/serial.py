"""A worker with one slot: claim, run, report in the main thread. The shortest path there is, and the default."""

import asyncio
import signal
import threading
from types import FrameType
from typing import Final

from gotask.node.run import Runner
from gotask.node.watchdog import Watchdog
from gotask.verdict import Interrupt, interruption

CLAIM_S: Final = 1.0  #: seconds one claim may sleep before the worker looks around
KNOCK: Final = signal.SIGUSR1  #: sent by the watchdog to the main thread; it also ends a sleep in a system call


class SerialWorker:
    def __init__(self, runner: Runner, max_jobs: int, max_memory: int) -> None:
        self._runner = runner
        self._max_jobs = max_jobs
        self._watchdog = Watchdog(runner.segment, runner.owner, self._interrupt, max_memory)
        self._exposed: int | None = None  # the ticket whose task is on the stack, so that it may be interrupted
        self._interrupted: tuple[int, Interrupt] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main = threading.main_thread().ident or 0
        self._coroutine: asyncio.Task[object] | None = None

    def run(self) -> None:
        """Work until told to stop, or until it is time for a fresh process."""
        signal.signal(KNOCK, self._on_knock)
        self._watchdog.start()
        claim, owner = self._runner.segment.claim, self._runner.owner
        count = 0
        while not self._watchdog.too_big:
            claimed = claim(owner, True, CLAIM_S)
            if claimed is not None:
                self._perform(*claimed)
                count += 1
                if count == self._max_jobs:
                    break
            elif self._runner.segment.stopping(owner):
                break
        if self._loop is not None:
            self._loop.close()

    def _perform(self, ticket: int, body: bytes) -> None:
        opened = self._runner.open(ticket, body)
        if opened is None:
            return
        job, task = opened
        try:
            try:
                arguments = task.decode(job.payload)
                context = self._runner.context(ticket, job, task)
                self._exposed = ticket
                value = task.call(arguments, context)
                if task.is_async:
                    value = self._await(value)
            finally:  # apart from the except clause, so that a knock before this store is still caught below
                self._exposed = None
        except BaseException as error:  # whatever a task raises ends its job, not the worker
            why = self._interrupted[1] if self._interrupted and self._interrupted[0] == ticket else None
            self._runner.failed(ticket, job, task, interruption(error, why))
        else:
            self._runner.done(ticket, task, value)

    def _await(self, coroutine: object) -> object:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._coroutine = self._loop.create_task(coroutine)  # type: ignore[arg-type]  # the task said it is async
        try:
            return self._loop.run_until_complete(self._coroutine)
        finally:
            self._coroutine = None

    def _interrupt(self, ticket: int, why: Interrupt) -> bool:
        """Watchdog's thread: knock at the main thread, which knows whether that run is still on."""
        if self._exposed != ticket:
            return False
        self._interrupted = (ticket, why)
        signal.pthread_kill(self._main, KNOCK)
        return True

    def _on_knock(self, _number: int, _frame: FrameType | None) -> None:
        if self._interrupted is None or self._exposed != self._interrupted[0]:
            return
        if self._coroutine is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._coroutine.cancel)  # a plain cancel would not end the loop's sleep
        else:
            self._exposed = None
            raise self._interrupted[1]
