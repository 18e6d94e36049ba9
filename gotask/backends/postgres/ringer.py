"""Telling others what happened: one thread that sends notifications after the fact, on a connection that no commit waits for.

A commit that notifies takes a lock which all others of its kind in the cluster wait for, so no transaction that changes jobs
does. A notification is a hint: one that is not sent is made up for by those who look from time to time.
"""

import atexit
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from gotask.backends.postgres import rows
from gotask.backends.postgres.server import Server
from gotask.clock import monotonic
from gotask.errors import GotaskError

FLUSH_S: Final = 1.0  #: seconds that the end of a program waits for what it has still to tell
ENDED_MOST: Final = 20_000  #: ids of ended jobs that may wait to be told; with more, those who wait look for themselves


class Ringer:
    def __init__(self, server: Server, channel: str) -> None:
        self._server, self._channel = server, channel
        self.start()

    def start(self) -> None:
        """Without a thread, which comes with the first ring: at first, and in a forked child."""
        self._changed = threading.Condition()
        self._topics: set[str] = set()
        self._ended: list[str] = []
        self._rung: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    def ring(self, topics: Iterable[str], ended: Iterable[str] = ()) -> None:
        """Tell of topics, and of the ends of jobs if somebody waits for them."""
        if self._server.address.notify is None:
            return
        with self._changed:
            known = len(self._topics), len(self._ended)
            self._topics.update(topics)
            if len(self._ended) < ENDED_MOST:
                self._ended.extend(ended)
            if (len(self._topics), len(self._ended)) == known or self._stopping:
                return  # the thread is told already; waking it each time would slow every enqueue
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gotask-ringer", daemon=True)
                self._thread.start()
                _ALL.add(self)
            self._changed.notify()

    def stop(self) -> None:
        """Tell what is still to be told, and end."""
        with self._changed:
            thread, self._stopping = self._thread, True
            self._changed.notify()
        if thread is not None:
            thread.join(FLUSH_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                topics, ended = self._next()
                if not topics and not ended:
                    return
            named, known = rows.texts(sorted(topics)), rows.texts(ended)
            with suppress(GotaskError):  # a hint that is lost
                self._server.call("ring", self._channel, named, self._channel, known)

    def _next(self) -> tuple[set[str], list[str]]:
        """What may be told now; nothing when it is time to end. A queue that was told of a moment ago has to wait."""
        gap = self._server.address.notify or 0.0
        while True:
            now = monotonic()
            if self._stopping:
                due = set(self._topics)
            else:
                due = {topic for topic in self._topics if now - self._rung.get(topic, float("-inf")) >= gap}
            if due or self._ended or self._stopping:
                ended, self._ended = self._ended, []
                self._topics -= due
                self._rung = {topic: at for topic, at in self._rung.items() if now - at < gap}
                self._rung.update((topic, now) for topic in due if topic.startswith("queue:"))
                return due, ended
            rest = min((self._rung[topic] + gap - now for topic in self._topics), default=None)
            self._changed.wait(rest)


_ALL: Final[weakref.WeakSet[Ringer]] = weakref.WeakSet()


def _flush() -> None:
    for ringer in list(_ALL):
        ringer.stop()


atexit.register(_flush)
