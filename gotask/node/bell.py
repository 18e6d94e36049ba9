"""How a dispatcher hears the store's doorbell, whether it sleeps at the segment or not.

With jobs in hand it sleeps at the segment, where reports arrive; then a second thread waits at the doorbell and passes the
ring on. With nothing in hand it waits at the doorbell itself: one wake-up less between an enqueue and its start.

A watch is made anew when other queues are served, and after an outage, in which it may have gone deaf. Whoever begins to
watch takes everything for rung: so nothing is missed between two watches.
"""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from gotask.backends import Backend, Watch
from gotask.errors import GotaskError

WAIT_S: Final = 1.0  #: seconds the thread waits before it sees whether it still should
OWN_WAIT_S: Final = 0.25  #: seconds; what does not ring the store, such as being told to stop, is noticed within this
AGAIN_S: Final = 0.5  #: seconds at most until the thread tries again to listen to a store that did not answer
log = logging.getLogger("gotask.node")


class Bell:
    """Two flags: work may have come, and `attention`, which the dispatcher clears before it looks."""

    def __init__(self, backend: Backend, owner: str, wake: Callable[[], None]) -> None:
        self._backend = backend
        self._owner = owner
        self._wake = wake
        self._queues: list[str] = []
        self._topics: list[str] = []
        self._epoch = 0  # a watch of an earlier epoch is of no use any more
        self._own: Watch | None = None
        self._at_segment = threading.Event()  # the dispatcher sleeps there, so the thread must listen
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="bell", daemon=True)
        self._deaf = False  # the thread could not listen, and has said so
        self._work = True
        self.attention = False

    def listen(self, queues: Sequence[str]) -> None:
        """The dispatcher's thread: these queues are served from now on."""
        if queues == self._queues:
            return
        self._queues = list(queues)
        self._topics = [f"node:{self._owner}", *(f"queue:{name}" for name in queues)]
        self._renew()
        if not self._thread.ident:
            self._thread.start()

    def lost(self) -> None:
        """The dispatcher's thread: the store did not answer, so it may have rung unheard, and know no watch of ours."""
        self._work = self.attention = True
        self._renew()

    def _renew(self) -> None:
        self._epoch += 1
        own, self._own = self._own, None
        if own is not None:
            with suppress(GotaskError):  # nobody listens to it any more, whatever became of it
                own.close()

    def close(self) -> None:
        self._closing.set()
        self._at_segment.set()
        self._renew()
        if self._thread.is_alive():
            self._thread.join(WAIT_S * 2)

    def take_work(self) -> bool:
        """Whether work may have come since this was asked last."""
        if not self._work:
            return False
        self._work = False  # before anybody looks: what rings from now on is for the next time
        return True

    def wait(self, timeout: float) -> None:
        """The dispatcher's thread, with nothing in hand: sleep until it rings. Raises BackendDown."""
        self._at_segment.clear()
        if self._own is None:
            self._own = self._backend.watch(self._topics)
            self._note(self._topics)
        else:
            self._note(self._own.wait(min(timeout, OWN_WAIT_S)))

    def hand_over(self) -> None:
        """The dispatcher's thread, about to sleep at the segment: from now on the other one listens."""
        if not self._at_segment.is_set():
            self._at_segment.set()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen_for_an_epoch()
            except GotaskError as error:
                if not self._deaf:
                    log.warning("Waiting for work is interrupted: %s", error)
                self._deaf = True
                self._closing.wait(random.uniform(AGAIN_S / 4, AGAIN_S))

    def _listen_for_an_epoch(self) -> None:
        epoch, topics = self._epoch, self._topics
        watch = self._backend.watch(topics)
        try:
            self._pass_on(topics)  # what happened before we listened counts as rung
            while True:
                self._at_segment.wait()
                if self._closing.is_set() or self._epoch != epoch:
                    return
                if rung := watch.wait(WAIT_S):
                    self._pass_on(rung)
                self._deaf = False
        finally:
            watch.close()

    def _pass_on(self, rung: Sequence[str] | set[str]) -> None:
        self._note(rung)
        self._wake()

    def _note(self, rung: Sequence[str] | set[str]) -> None:
        if any(topic.startswith("node:") for topic in rung):
            self.attention = True
        if any(topic.startswith("queue:") for topic in rung):
            self._work = True
