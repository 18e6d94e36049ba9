"""Signs of life: leases in hand are extended in time, with what tasks say of their progress. The answer may be to stop one."""

from collections.abc import Sequence
from typing import Final

from gotask._core.ring import Segment
from gotask.backends import Backend
from gotask.model import GRACE_S, Beat, Held
from gotask.node.agenda import Agenda
from gotask.node.bell import Bell
from gotask.node.heldup import HeldUp
from gotask.node.ledger import Ledger
from gotask.policy import Outcome

BEATS_PER_LEASE: Final = 3  #: signs of life within one lease: two may be lost before a job is taken away
PROGRESS_S: Final = 0.3  #: seconds between two writes of what running tasks say of their progress


class Pulse:
    def __init__(
        self, backend: Backend, segment: Segment, ledger: Ledger, held_up: HeldUp, agenda: Agenda, bell: Bell, lease_s: float
    ) -> None:
        self._backend = backend
        self._segment = segment
        self._ledger = ledger
        self._held_up = held_up
        self._agenda = agenda
        self._bell = bell
        self._lease_s = lease_s

    def beat(self) -> None:
        """Extend what is in hand: all of it from time to time, and at once when somebody asks for something to stop."""
        if self._agenda.is_due("beat") or self._bell.attention:
            self._bell.attention = False
            self._extend(list(self._ledger.jobs), self._held_up.beats())
            self._agenda.book("beat", self._lease_s / BEATS_PER_LEASE)
        elif self._ledger.progress and self._agenda.is_due("progress"):
            self._extend(list(self._ledger.progress))
            self._agenda.book("progress", PROGRESS_S)

    def _extend(self, tickets: Sequence[int], ended: Sequence[Beat] = ()) -> None:
        """`ended` are of runs that only wait to be written down: there is nothing to stop any more."""
        pairs = [(ticket, job) for ticket in tickets if (job := self._ledger.jobs.get(ticket))]
        beats = [Beat(job.id, job.lease, *self._ledger.take_progress(ticket)) for ticket, job in pairs]
        if not beats and not ended:
            return
        for (ticket, _), held in zip(pairs, self._backend.extend_many([*beats, *ended], self._lease_s), strict=False):
            if held is Held.CANCEL and ticket not in self._ledger.cancelled:
                if self._segment.cancel(ticket, GRACE_S):
                    self._ledger.cancelled.add(ticket)
                else:
                    self._ledger.unstarted(ticket, Outcome("cancelled", "cancelled before it started"))
