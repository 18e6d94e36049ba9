"""What one process does when time has passed: whatever is due, sums, and the tables of the days."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final

from gotask.backends.postgres import moving, rows
from gotask.backends.postgres.moving import Heard
from gotask.backends.postgres.server import Server
from gotask.clock import monotonic
from gotask.errors import BackendDown
from gotask.model import Tick
from gotask.states import DAY_S, DEAD_LETTER_KEEP_S, KEEP_S

#: seconds after which the tables of a day are tried again: they need a lock that all would wait behind
TEND_AGAIN_S: Final = 60.0
LOCKED_S: Final = 0.25  #: seconds between two ticks while all that is due is in the hands of others
FOLD_AT: Final = 500  #: tallies, above which a tick adds them up
KEEP_DAYS: Final = sorted({round(seconds / DAY_S) for seconds in (*KEEP_S.values(), DEAD_LETTER_KEEP_S)})
#: Between two looks for leases that have lapsed, at least so many times the time that one took. A long transaction elsewhere
#: makes them dear: the entries of all leases since it began lie before the first that counts.
LOOKS_REST: Final = 50


class Due:
    """`at` gives the time if it is not the server's: then it may leap, and no look is left out."""

    def __init__(self, server: Server, at: Callable[[], datetime | None]) -> None:
        self._server, self._at = server, at
        self._tend_at = 0.0
        self._look_at = 0.0

    def tick(self, limit: int) -> tuple[Tick, Heard]:
        begun = monotonic()
        look = begun >= self._look_at
        rest, untended = self._next_due(look)
        done, heard = Tick(next_in=rest), Heard()
        if rest is not None and rest <= 0:
            done, heard = moving.do_due(self._server, limit, look, self._at())
            done.next_in, _ = self._next_due(look)
            if done.next_in is not None and not (done.promoted or done.lapsed or done.expired or done.pruned):
                done.next_in = max(done.next_in, LOCKED_S)
        if look and self._at() is None:
            self._look_at = monotonic() + LOOKS_REST * (monotonic() - begun)
        if untended and monotonic() >= self._tend_at:
            self._tend()
        return done, heard

    def _next_due(self, look: bool) -> tuple[float | None, bool]:
        """Seconds until something is due, and whether the tables of today are still to be made."""
        at = self._at()
        ((lapse, rest, untended, tallies),) = self._server.call("next due", FOLD_AT, look, at)
        if tallies >= FOLD_AT:
            self._server.call("fold", at)
        now = monotonic()
        soon = [one for one in (lapse, rest, None if look else self._look_at - now) if one is not None]
        return max(0.0, min(soon)) if soon else None, untended

    def _tend(self) -> None:
        self._tend_at = monotonic() + TEND_AGAIN_S
        with suppress(BackendDown):  # somebody was in the way, such as a dump, or a transaction that completed a job
            ((changed,),) = self._server.call("tend", rows.ints(KEEP_DAYS), self._at())
            if changed is not None:
                self._tend_at = 0.0
