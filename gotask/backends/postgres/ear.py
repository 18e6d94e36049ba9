"""The doorbell: one connection per process that listens for all its watches, and may fail: then they look for themselves.

Behind a pooler that gives a connection to each transaction, LISTEN is accepted and nothing is ever heard. So the ear rings for
itself, over another connection: when it starts, after a while of silence, and when somebody watches anew since a call had
failed. One that does not hear that is deaf, and tries again more and more seldom.
"""

import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Final

import psycopg

from gotask.backends.postgres import rows
from gotask.backends.postgres.link import Link, disown
from gotask.backends.postgres.server import Server
from gotask.backends.postgres.sql import quoted
from gotask.clock import monotonic
from gotask.errors import GotaskError

AWAITED_S: Final = 120.0  #: seconds that a note "somebody waits" is believed; renewed in half that time
SILENCE_S: Final = 15.0  #: seconds without a sound, after which the ear tries itself
PROOF_S: Final = 1.0  #: seconds in which it must hear itself
EAGER_S: Final = 0.004  #: seconds between looks of those who just found something, while the next ring is held back
AGAIN_S: Final = 1.0  #: seconds between two tries to listen again
DEAF_S: Final = 60.0  #: seconds between them at most, where connections are made and nothing comes through
END, DOUBT = b".", b"?"  #: what the thread is told
JOB: Final = "job:"
QUEUE: Final = "queue:"


class Ear:
    """One thread and its connection, for as long as anybody watches."""

    def __init__(self, server: Server, channel: str) -> None:
        self._server, self._channel = server, channel
        self.start()

    def start(self) -> None:
        """Without a thread: at first, and in a forked child."""
        self._guard = threading.Lock()
        self._watches: dict[str, set[PostgresWatch]] = {}
        self._thread: threading.Thread | None = None
        self._link: Link | None = None
        self._tried = threading.Event()
        self._wake = (-1, -1)
        self._failed = self._server.failed
        self._deaf_s = AGAIN_S
        self.hears = False

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        if self._link is not None:
            disown(self._link)
        for descriptor in self._wake:
            with suppress(OSError):
                os.close(descriptor)
        self.start()

    def add(self, watch: "PostgresWatch") -> None:
        """Serve a watch: by the time this returns it is listened for, or known that it must look for itself."""
        with self._guard:
            for topic in watch.topics:
                self._watches.setdefault(topic, set()).add(watch)
            if self._thread is None and self._server.address.notify is not None:
                self._wake = os.pipe()
                self._tried.clear()
                self._thread = threading.Thread(target=self._run, name="gotask-ear", daemon=True)
                self._thread.start()
            elif self._thread is not None and self._failed != self._server.failed:
                os.write(self._wake[1], DOUBT)
            self._failed = self._server.failed
        if self._server.address.notify is not None:
            self._tried.wait(self._server.address.timeout)

    def remove(self, watch: "PostgresWatch") -> None:
        with self._guard:
            for topic in watch.topics:
                watches = self._watches.get(topic, set())
                watches.discard(watch)
                if not watches:
                    self._watches.pop(topic, None)

    def stop(self) -> None:
        with self._guard:
            thread, self._thread = self._thread, None
            if thread is not None:
                os.write(self._wake[1], END)
        if thread is not None:
            thread.join(self._server.address.timeout)
            for descriptor in self._wake:
                os.close(descriptor)
            self._wake = (-1, -1)

    def _run(self) -> None:
        mine = self._wake[0]
        while True:
            with suppress(psycopg.Error, GotaskError, OSError), self._server.links.connect() as link:
                self._link = link
                link.execute(f"LISTEN {quoted(self._channel)}")
                if self._listen(link, mine):
                    self._link = None
                    return
            self._link, self.hears = None, False
            self._tried.set()
            self._ring_all()
            if _ends(AGAIN_S, mine):
                return

    def _listen(self, link: Link, wake: int) -> bool:
        """Hear until told to end (then True), or until nothing is heard any more."""
        proof = f"ear:{os.urandom(8).hex()}"
        asked, heard, passed, doubted = float("-inf"), float("-inf"), float("-inf"), True
        while True:
            now = monotonic()
            if asked <= heard and (doubted or now - heard > SILENCE_S):
                self._server.call("ring", self._channel, rows.texts([proof]), self._channel, rows.texts([]))
                asked, doubted = monotonic(), False
            elif asked > heard and now - asked > PROOF_S:
                return self._deaf(wake)
            if self.hears and now - passed >= self._server.address.poll:
                self._pass_on()
                passed = now
            found = _readable(min(PROOF_S, self._server.address.poll), wake, link.pgconn.socket)
            if wake in found:
                if os.read(wake, 1) == END:
                    return True
                doubted = True
            if link.pgconn.socket in found:
                link.pgconn.consume_input()
                while (told := link.pgconn.notifies()) is not None:
                    heard = monotonic()
                    self._ring(told.extra.decode())
                if heard > asked and not self.hears:
                    self._deaf_s = AGAIN_S
                    self.hears, again = True, self._tried.is_set()
                    self._tried.set()
                    if again:  # something may have been missed meanwhile
                        self._ring_all()

    def _pass_on(self) -> None:
        """Ring for those whose own transactions brought jobs and told nobody."""
        if any(topic.startswith(QUEUE) for topic in tuple(self._watches)):
            self._server.call("pass calls on", self._channel)

    def _deaf(self, wake: int) -> bool:
        """Nothing comes through: let all look for themselves for a while, then try again."""
        self.hears = False
        self._tried.set()
        self._ring_all()
        seconds, self._deaf_s = self._deaf_s, min(DEAF_S, 2 * self._deaf_s)
        return _ends(seconds, wake)

    def found(self, queues: set[str]) -> None:
        """Jobs came from these queues: more may follow before their producer may ring again, so for that long look often."""
        with self._guard:
            watches = {watch for queue in queues for watch in self._watches.get(QUEUE + queue, ())}
        for watch in watches:
            watch.eager(self._server.address.notify or 0.0)

    def _ring(self, topic: str) -> None:
        with self._guard:
            watches = list(self._watches.get(topic, ()))
        for watch in watches:
            watch.rung({topic})

    def _ring_all(self) -> None:
        with self._guard:
            watches = {watch for some in self._watches.values() for watch in some}
        for watch in watches:
            watch.rung(watch.topics)


def _readable(seconds: float, *descriptors: int) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(seconds * 1000)}


def _ends(seconds: float, wake: int) -> bool:
    """Wait for so long, or until told something; whether that was to end."""
    return wake in _readable(seconds, wake) and os.read(wake, 1) == END


class PostgresWatch:
    """A Watch (see gotask.backends)."""

    def __init__(self, server: Server, ear: Ear, topics: Sequence[str]) -> None:
        self.topics = frozenset(topics)
        self._server, self._ear = server, ear
        self._jobs = sorted(topic.removeprefix(JOB) for topic in self.topics if topic.startswith(JOB))
        self._rung: set[str] = set()
        self._changed = threading.Condition()
        self._noted_at = float("-inf")
        self._waited_s = 0.0  #: seconds, since it was last sent to look
        self._eager_until = 0.0
        if self.topics:
            ear.add(self)
            self._note()

    def wait(self, timeout: float) -> set[str]:
        deadline = monotonic() + timeout
        while self.topics:
            with self._changed:
                if self._rung:
                    rung, self._rung, self._waited_s = self._rung, set(), 0.0
                    return rung
                now = monotonic()
                pace = self._pace(now)
                if self._waited_s >= pace:  # in one wait or in many
                    self._waited_s = 0.0
                    return set(self.topics)
                if deadline <= now:
                    return set()
                self._changed.wait(min(deadline - now, pace - self._waited_s, AWAITED_S / 2))
                self._waited_s += 0.0 if pace == inf else monotonic() - now
            self._note()
        return set()

    def _pace(self, now: float) -> float:
        """Seconds after which to look unasked."""
        if now < self._eager_until:
            return EAGER_S
        return inf if self._ear.hears else self._server.address.poll

    def rung(self, topics: set[str] | frozenset[str]) -> None:
        with self._changed:
            self._rung |= topics
            self._changed.notify()

    def eager(self, seconds: float) -> None:
        with self._changed:
            self._eager_until = monotonic() + seconds
            self._changed.notify()

    def close(self) -> None:
        self._ear.remove(self)

    def _note(self) -> None:
        """Tell the store whose ends somebody waits for; an end that nobody waits for is not told."""
        if self._jobs and self._ear.hears and monotonic() - self._noted_at > AWAITED_S / 2:
            self._server.call("note waits", AWAITED_S, rows.texts(self._jobs))
            self._noted_at = monotonic()
