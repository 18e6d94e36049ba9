"""A worker's second thread: it notices that a run is past its time limit or was cancelled, and has it interrupted.

It is the kind half of the enforcement. A run that ignores it past the grace is the arbiter's, who kills the process.
"""

import os
import threading
from collections.abc import Callable
from typing import Final

from gotask._core.ring import Segment
from gotask.errors import Cancelled, TimeLimit
from gotask.verdict import Interrupt

BUSY_S: Final = 0.05  #: seconds between looks while something runs: how late a time limit may be
IDLE_S: Final = 0.2  #: seconds between looks otherwise, so that a short limit is met also after a rest
MEMORY_EVERY: Final = 10  #: looks between two of the process's memory
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Watchdog:
    """Calls `interrupt(ticket, why)` from its own thread until that says that it has reached the run."""

    def __init__(self, segment: Segment, owner: int, interrupt: Callable[[int, Interrupt], bool], max_memory: int) -> None:
        self._segment = segment
        self._owner = owner
        self._interrupt = interrupt
        self._max_memory = max_memory
        self._told: set[int] = set()
        self.too_big = False  #: the process has more memory than it may

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        looks = 0
        while True:
            seen = self._segment.attention_seen(self._owner)
            overdue = self._segment.overdue(self._owner)
            self._told &= set(overdue)
            for ticket in overdue:
                if ticket not in self._told and self._interrupt(
                    ticket, Cancelled if self._segment.cancelled(ticket) else TimeLimit
                ):
                    self._told.add(ticket)
            looks += 1
            if self._max_memory and looks % MEMORY_EVERY == 0:
                self.too_big = resident_bytes() > self._max_memory
            self._segment.wait_attention(self._owner, seen, BUSY_S if self._segment.held(self._owner) else IDLE_S)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE
