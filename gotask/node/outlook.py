"""What a node notices of its store that makes it slow or unsafe, for its log: in a thread of its own, and rarely.

A store that has something to say has a method `warnings`, which answers sentences by what they are about.
"""

import logging
import random
import threading
from contextlib import suppress
from typing import Final

from gotask.backends import Backend
from gotask.clock import monotonic
from gotask.errors import GotaskError

LOOK_S: Final = 60.0  #: seconds between two looks; the nodes of a store take theirs apart
AGAIN_S: Final = 900.0  #: seconds until the same thing is said again
log = logging.getLogger("gotask.node")


class Outlook:
    def __init__(self, backend: Backend) -> None:
        self._ask = getattr(backend, "warnings", None)
        self._told: dict[str, float] = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look from time to time, if this store has anything to say."""
        if self._ask is not None:
            threading.Thread(target=self._run, name="outlook", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S * random.uniform(0.75, 1.25)):
            with suppress(GotaskError):  # whoever leases has said it by now
                self.look()

    def look(self) -> None:
        """Say what was not said for a while."""
        if self._ask is None:
            return
        now = monotonic()
        self._told = {about: at for about, at in self._told.items() if now - at < AGAIN_S}
        for about, sentence in self._ask().items():
            if about not in self._told:
                self._told[about] = now
                log.warning("%s", sentence)
