"""Calls `tick` when something is due: scheduled jobs are promoted, lapsed ones given back, old ones forgotten.

Any number of tickers may run on one store. Each ticks when what it knows of comes due, and from time to time for what was made
meanwhile: every second where that costs next to nothing, else more seldom, as the nodes that serve a queue are rung for it.
"""

import logging
import random
import threading
from collections.abc import Callable
from typing import Final

from gotask.backends import Backend
from gotask.errors import GotaskError

logger = logging.getLogger("gotask.ticker")

AT_MOST_S: Final = 1.0  #: seconds between two ticks of an embedded store when nothing is known to be due
NETWORKED_S: Final = 15.0  #: the same for a store that many servers share, over a network
AT_LEAST_S: Final = 0.01  #: seconds, lest a due time just ahead becomes a busy loop
AFTER_ERROR_S: Final = 2.0  #: seconds to leave a store alone that does not answer
JITTER: Final = 0.2  #: part of a pause that is random, so that several tickers spread out


class Ticker:
    """A thread that ticks one store. It outlives errors: an outage is logged once, and its end once."""

    def __init__(self, backend: Backend, at_most_s: float = AT_MOST_S, at_first: Callable[[], object] = lambda: None) -> None:
        """`at_most_s`: seconds between two ticks; `at_first` is called once the store has answered."""
        self._backend = backend
        self._at_most_s = at_most_s
        self._at_first: Callable[[], object] | None = at_first
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self._failing = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for a tick under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=AFTER_ERROR_S)

    def _run(self) -> None:
        pause = AT_LEAST_S
        while not self._stopped.wait(pause * random.uniform(1 - JITTER, 1)):
            pause = self.once()

    def once(self) -> float:
        """Tick, and say how many seconds to wait before the next."""
        try:
            done = self._backend.tick()
            if self._at_first is not None:
                self._at_first()
                self._at_first = None
        except Exception as error:  # a bug in a store must not end promotion for good
            if not self._failing:
                logger.warning("What is due waits: %s", error, exc_info=not isinstance(error, GotaskError))
            self._failing = True
            return AFTER_ERROR_S
        if self._failing:
            logger.info("The store answers again; what is due is done.")
        self._failing = False
        if done.next_in == 0:
            return 0.0
        return self._at_most_s if done.next_in is None else min(self._at_most_s, max(AT_LEAST_S, done.next_in))
