"""Writers take turns. SQLite's own lock goes to whoever asks at the right instant, so a busy node could starve a producer.

A queue of byte locks on a small file. Byte 0 is a gate, held for microseconds, to draw the next ticket t and lock byte t.
It is one's turn when no byte from 1 to t - 1 is locked, so it goes by the tickets; the kernel drops the locks of the dead.
The bell wakes those who wait; without it, or when a holder died, they look again after a moment. SQLite's lock still guards
the data: where the platform has no such locks (they belong to an open file, not to a process), a turn is a plain file lock.
"""

import fcntl
import os
import struct
import time
from typing import Final

from gotask.backends.sqlite.bell import TURN, Bell
from gotask.clock import monotonic
from gotask.errors import BackendDown

_LOOK_S: Final = 0.005  #: seconds between two looks at locks whose holder may have died
_GATE_S: Final = 0.000_05  #: seconds between two tries at the gate
_QUEUES: Final = hasattr(fcntl, "F_OFD_SETLK")
_FLOCK: Final = struct.Struct("hhqqi4x")  # type, whence, start, length, pid
_TYPE: Final = struct.Struct("h")


class Turn:
    """One thread's place among the writers of one store."""

    def __init__(self, path: str, bell: Bell, patience: float) -> None:
        self._path = path
        self._bell = bell
        self._patience = patience
        self._ticket = 0
        self._fd = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def take(self) -> None:
        """Wait for the turn; BackendDown when it has not come in time."""
        deadline = monotonic() + self._patience
        if _QUEUES:
            self._draw(deadline)
        try:
            while True:
                seen = int(self._bell.words[TURN])  # before the look: a turn given between the two must not be slept through
                if self._is_next():
                    return
                self._bell.sleep({TURN: seen}, min(self._rest(deadline), _LOOK_S))
        except BaseException:
            self.give()
            raise

    def give(self) -> None:
        if _QUEUES:
            self._lock(fcntl.F_UNLCK, self._ticket)
        else:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._bell.ring(TURN)

    def _draw(self, deadline: float) -> None:
        """Take the next ticket and lock its byte."""
        while True:
            try:
                self._lock(fcntl.F_WRLCK, 0)
                break
            except BlockingIOError:
                time.sleep(min(self._rest(deadline), _GATE_S))
        try:
            self._ticket = self._bell.ticket.value = self._bell.ticket.value + 1
            self._lock(fcntl.F_WRLCK, self._ticket)
        finally:
            self._lock(fcntl.F_UNLCK, 0)

    def _is_next(self) -> bool:
        try:
            if not _QUEUES:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif self._ticket > 1:
                asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 1, self._ticket - 1, 0)
                (found,) = _TYPE.unpack_from(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))
                return bool(found == fcntl.F_UNLCK)
        except BlockingIOError:
            return False
        return True

    def _lock(self, kind: int, byte: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))

    def _rest(self, deadline: float) -> float:
        rest = deadline - monotonic()
        if rest <= 0:
            raise BackendDown(
                f"Another process has held the storage {self._path} for {self._patience:g} s; try again, "
                "or look for one that is stopped."
            )
        return rest

    def close(self) -> None:
        os.close(self._fd)
