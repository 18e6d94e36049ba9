"""Thousands of clients that wait for a job's end, on a handful of threads.

A thread that listens cannot be told of another job until it wakes. So one thread, the scout, takes newcomers at once, and
listens in short sleeps to take those who come meanwhile too. Keepers sleep long; they take over whom the scout has, so
that the scout becomes idle again. With nobody waiting all are idle and cost nothing.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from gotask import clock
from gotask.backends import Backend
from gotask.errors import GotaskError
from gotask.states import FINISHED

SCOUT_S: Final = 0.02  #: seconds the scout sleeps: how late it may listen for one who comes while it listens for others
SOON_S: Final = 1.0  #: seconds a keeper sleeps when it just took somebody over: more will follow
LONG_S: Final = 5.0  #: seconds a keeper sleeps otherwise; rings wake it sooner, this is for a lost one
ROOM: Final = 100  #: jobs one keeper listens for: the kernel lets a thread sleep on about so many places at once
KEEPERS: Final = 12  #: beyond ROOM for each of them, the keepers take any number and listen less cheaply


class _Waiter(NamedTuple):
    job: str
    until: float
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Future[None]

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed, and nobody waits any more
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class LongPoll:
    """Tells coroutines that a job has ended. A wake-up is a hint: look at the job then, and wait again if it must be."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._changed = threading.Condition()
        self._newcomers: list[_Waiter] = []
        self._scouted: dict[int, _Waiter] = {}  # whom the scout listens for and a keeper may take over
        self._kept: dict[int, list[_Waiter]] = {}
        self._idle = 0
        self._closed = False

    async def wait(self, job: str, timeout: float) -> None:
        """Return when `job` may have ended, and after `timeout` seconds at the latest."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(job, clock.monotonic() + timeout, loop, loop.create_future())
        with self._changed:
            if self._closed:
                return
            self._newcomers.append(waiter)
            if not self._kept:
                self._start(self._scout)
            if not self._idle and len(self._kept) < KEEPERS:
                number = len(self._kept)
                self._kept[number] = []
                self._start(lambda: self._keep(number))
            self._changed.notify_all()
        timer = loop.call_later(timeout, waiter.wake)
        try:
            await waiter.woken
        finally:
            timer.cancel()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Wake all who wait; from now on nobody waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            everyone = [*self._newcomers, *self._scouted.values(), *(one for group in self._kept.values() for one in group)]
        for waiter in everyone:
            waiter.wake()

    def _start(self, role: Callable[[], None]) -> None:
        threading.Thread(target=role, name="longpoll", daemon=True).start()

    def _scout(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newcomers or self._scouted or self._closed)
                if self._closed:
                    return
                self._scouted |= {id(waiter): waiter for waiter in self._newcomers}
                self._newcomers = []
                group = list(self._scouted.values())
                self._changed.notify_all()
            left = {id(waiter) for waiter in self._listen(group, SCOUT_S)}
            with self._changed:
                self._scouted = {key: waiter for key, waiter in self._scouted.items() if key in left}

    def _keep(self, number: int) -> None:
        group: list[_Waiter] = []
        while True:
            with self._changed:
                self._idle += not group
                self._changed.wait_for(lambda: self._scouted or group or self._closed)  # noqa: B023 - called at once
                self._idle -= not group
                if self._closed:
                    return
                room = ROOM - len(group) if len(self._kept) < KEEPERS else len(self._scouted)
                taken = [self._scouted.pop(key) for key in list(self._scouted)[: max(0, room)]]
                group = self._kept[number] = group + taken
            if group:
                group = self._listen(group, SOON_S if taken else LONG_S)

    def _listen(self, group: list[_Waiter], seconds: float) -> list[_Waiter]:
        """Serve those of a group whose jobs have ended or end within `seconds`. Returns the others."""
        try:
            watch = self._backend.watch([f"job:{job}" for job in {waiter.job for waiter in group}])
            try:
                group = self._serve(group, {waiter.job for waiter in group})  # what ended before the watch began
                if group and not self._closed:
                    group = self._serve(group, {topic.removeprefix("job:") for topic in watch.wait(seconds)})
            finally:
                watch.close()
        except GotaskError:  # the store is away: who waits sees that for himself when he looks
            for waiter in group:
                waiter.wake()
            return []
        return group

    def _serve(self, group: list[_Waiter], rung: set[str]) -> list[_Waiter]:
        ids = sorted(rung & {waiter.job for waiter in group})
        jobs = self._backend.get_many(ids) if ids else []
        ended = {id for id, job in zip(ids, jobs, strict=True) if job is None or job.status in FINISHED}
        now = clock.monotonic()
        for waiter in group:
            if waiter.job in ended:
                waiter.wake()
        return [waiter for waiter in group if waiter.job not in ended and waiter.until > now]
