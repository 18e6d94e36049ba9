"""The dispatcher's second thread: it waits at the store's doorbell and passes the ring on through the segment."""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Final

from gotask.backends import Backend
from gotask.errors import GotaskError

WAIT_S: Final = 1.0  #: seconds; a ring that was lost costs at most this
log = logging.getLogger("gotask.node")


class Bell:
    """Two flags, `work` and `attention`, that the dispatcher clears before it looks."""

    def __init__(self, backend: Backend, topics: Sequence[str], wake: Callable[[], None]) -> None:
        self._backend = backend
        self._topics = list(topics)
        self._wake = wake
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="bell", daemon=True)
        self.work = True
        self.attention = False

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(WAIT_S * 2)

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen_once()
            except GotaskError as error:
                log.warning("Waiting for work is interrupted: %s", error)
                self._closing.wait(random.uniform(0.2, 1.0))

    def _listen_once(self) -> None:
        watch = self._backend.watch(self._topics)
        try:
            self._ring(set(self._topics))  # what happened before we listened counts as rung
            while not self._closing.is_set():
                rung = watch.wait(WAIT_S)
                if rung:
                    self._ring(rung)
        finally:
            watch.close()

    def _ring(self, rung: set[str]) -> None:
        if any(topic.startswith("node:") for topic in rung):
            self.attention = True
        if any(topic.startswith("queue:") for topic in rung):
            self.work = True
        self._wake()
