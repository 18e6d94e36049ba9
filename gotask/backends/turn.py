"""Writers take turns. SQLite's own lock goes to whoever asks at the right instant, so a busy node could starve a producer.

A turnstile of two file locks: who holds `next` is the only one waiting for `turn`; who lets go of `turn` must get `next`
before having another, and finds it taken if anybody waits. The kernel drops the locks of the dead. The bell wakes the
waiting at once; without it, or when a holder died, they look again after a moment.
"""

import fcntl
import os
from typing import Final

from gotask.backends.bell import TURN, Bell
from gotask.clock import monotonic
from gotask.errors import BackendDown

_LOOK_S: Final = 0.005  #: seconds between two looks at a lock whose holder may have died


class Turn:
    """One thread's place at the turnstile of one store."""

    def __init__(self, path: str, bell: Bell, patience: float) -> None:
        self._path = path
        self._bell = bell
        self._patience = patience
        self._fds: list[int] = []
        self._fds = [self._open(f"{path}-next"), self._open(f"{path}-turn")]

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def take(self) -> None:
        """Wait for the turn; BackendDown when it has not come in time."""
        deadline = monotonic() + self._patience
        self._lock(0, deadline)
        try:
            self._lock(1, deadline)
        finally:
            self._unlock(0)

    def give(self) -> None:
        self._unlock(1)

    def _lock(self, which: int, deadline: float) -> None:
        word = TURN + which
        while True:
            seen = int(self._bell.words[word])  # before the try: a release between the two must not be slept through
            try:
                fcntl.flock(self._fds[which], fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                rest = deadline - monotonic()
                if rest <= 0:
                    raise BackendDown(
                        f"Another process has held the storage {self._path} for {self._patience:g} s; try again, "
                        "or look for one that is stopped."
                    ) from None
                self._bell.sleep({word: seen}, min(rest, _LOOK_S))

    def _unlock(self, which: int) -> None:
        fcntl.flock(self._fds[which], fcntl.LOCK_UN)
        self._bell.ring(TURN + which)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
