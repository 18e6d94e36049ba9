"""How a dispatcher hears the store's doorbell, whether it sleeps at the segment or not.

With jobs in hand it sleeps at the segment, where reports arrive; then a second thread waits at the doorbell and passes the
ring on. With nothing in hand it waits at the doorbell itself: one wake-up less between an enqueue and its start.
"""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Final

from gotask.backends import Backend, Watch
from gotask.errors import GotaskError

WAIT_S: Final = 1.0  #: seconds; a ring that was lost costs at most this
OWN_WAIT_S: Final = 0.25  #: seconds; what does not ring the store, such as being told to stop, is noticed within this
log = logging.getLogger("gotask.node")


class Bell:
    """Two flags, `work` and `attention`, that the dispatcher clears before it looks."""

    def __init__(self, backend: Backend, wake: Callable[[], None]) -> None:
        self._backend = backend
        self._topics: list[str] = []
        self._wake = wake
        self._own: Watch | None = None
        self._at_segment = threading.Event()  # the dispatcher sleeps there, so the thread must listen
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="bell", daemon=True)
        self.work = True
        self.attention = False

    def start(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._at_segment.set()
        if self._thread.is_alive():
            self._thread.join(WAIT_S * 2)

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
        while not self._closing:
            try:
                self._listen_until_closed()
            except GotaskError as error:
                log.warning("Waiting for work is interrupted: %s", error)
                threading.Event().wait(random.uniform(0.2, 1.0))

    def _listen_until_closed(self) -> None:
        watch = self._backend.watch(self._topics)
        try:
            self._pass_on(self._topics)  # what happened before we listened counts as rung
            while not self._closing:
                self._at_segment.wait()
                if rung := watch.wait(WAIT_S):
                    self._pass_on(rung)
        finally:
            watch.close()

    def _pass_on(self, rung: Sequence[str] | set[str]) -> None:
        self._note(rung)
        self._wake()

    def _note(self, rung: Sequence[str] | set[str]) -> None:
        if any(topic.startswith("node:") for topic in rung):
            self.attention = True
        if any(topic.startswith("queue:") for topic in rung):
            self.work = True
