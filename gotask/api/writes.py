"""Whether the store takes jobs, as those found out who sent some: on a full disk it answers questions, and keeps nothing."""

import logging
from typing import Final

from gotask import clock
from gotask.errors import BackendDown

UNREADY_S: Final = 10.0  #: seconds a server stays unready after a refused enqueue, if none succeeds sooner
TOLD_S: Final = 10.0  #: seconds between two lines of the log about it
logger = logging.getLogger("gotask.server")


class Writes:
    """The latest refusal of an enqueue, forgotten when one succeeds."""

    def __init__(self) -> None:
        self._refusal = ""
        self._failed_at = 0.0
        self._told_at: float | None = None
        self._untold = 0

    def failed(self, error: BackendDown) -> None:
        now = clock.monotonic()
        if error.refused:  # a store that did not answer is asked by whoever wants to know
            self._refusal, self._failed_at = str(error), now
        self._untold += 1
        if self._told_at is None or now - self._told_at >= TOLD_S:
            logger.warning("Enqueues fail, %d since this was last said: %s", self._untold, error)
            self._told_at, self._untold = now, 0

    def worked(self) -> None:
        self._refusal = ""

    def check(self) -> None:
        """Raises BackendDown while enqueues fail."""
        if self._refusal and clock.monotonic() - self._failed_at < UNREADY_S:
            raise BackendDown(f"The store answers, but refused the latest enqueue: {self._refusal}")
