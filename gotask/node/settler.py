"""Writes endings down. Towards a store on the network, a large batch goes on a thread and a connection of its own, so that the
store works on it while jobs are leased; an embedded store has one writer at a time, and would only be asked in vain.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gotask.backends import Backend
from gotask.model import Settlement

LEAST: Final = 100  #: endings that are worth waking a thread for
SWITCH_S: Final = 0.0005  #: seconds; an answer that came in should not wait long for the thread that works on another
Settle = Callable[[Sequence[Settlement]], Sequence[bool | None]]


def settling(backend: Backend) -> Settle:
    """What ends leases without waiting for jobs that others hold: these are for `HeldUp` to wait for."""
    found: Settle = getattr(backend, "settle_free", backend.settle_many)
    return found


class Settler:
    """`beside`: whether large batches go on a thread."""

    def __init__(self, backend: Backend, beside: bool) -> None:
        self._settle = settling(backend)
        self._threads = ThreadPoolExecutor(1, "settler") if beside else None
        if beside:
            sys.setswitchinterval(SWITCH_S)

    def begin(self, settlements: Sequence[Settlement]) -> Callable[[], Sequence[bool | None]]:
        """Begin to write a batch down. The answer is to be called, whatever happens meanwhile: it waits for the end, and says
        of each what `Backend.settle_many` does. Raises BackendDown then, never now.
        """
        if self._threads is not None and len(settlements) >= LEAST:
            return self._threads.submit(self._settle, settlements).result
        return lambda: self._settle(settlements) if settlements else []

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
