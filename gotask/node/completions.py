"""Runs whose task completes its job in a transaction of its own: what became of that, only the store can say.

Such a run says so before it begins, and at its end what it came to otherwise. The store is asked then, and never waited for: a
transaction may be open for as long as it likes, and keeps only its own job in hand. Its report does not stay for so long, so
what was asked for is left to the next dispatcher, should this one die.
"""

import logging
from typing import Final

import msgspec

from gotask._core.ring import Loss
from gotask.backends import Backend
from gotask.clock import monotonic
from gotask.model import Became, Job
from gotask.node import frame
from gotask.node.ledger import Ledger
from gotask.node.notices import COMPLETIONS_AT, Notices
from gotask.policy import Outcome
from gotask.verdict import uncommitted

FIRST_S: Final = 0.02  #: seconds until a transaction that was open is looked at again; the pause doubles
MOST_S: Final = 1.0  #: seconds between two looks at most
log = logging.getLogger("gotask.node")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[tuple[int, Outcome]]).decode


class Completions:
    """Stands before the ledger: it is told of every end but that of a task which just returned."""

    def __init__(self, ledger: Ledger, backend: Backend, notices: Notices) -> None:
        self._ledger = ledger
        self._backend = backend
        self._notices = notices
        self._begun: set[int] = set()  # tickets of runs that may have a transaction under way
        self._ended: dict[int, Outcome] = {}  # of such runs, what they came to if that does not commit
        self._warned: set[int] = set()
        self._pause = 0.0
        self._look_at = 0.0

    def adopt(self) -> None:
        """Take over what a dead predecessor had asked for. What it had settled since is no ticket any more."""
        left = self._notices.left(COMPLETIONS_AT)
        for ticket, outcome in _decode(left) if left is not None else ():
            if ticket in self._ledger.jobs:
                self._end(ticket, outcome)

    @property
    def rest(self) -> float:
        """Seconds until the next look; infinite if nothing has to be looked at."""
        return max(0.0, self._look_at - monotonic()) if self._ended else float("inf")

    def hear(self, ticket: int, kind: int, final: bool, body: bytes) -> None:
        """A report other than that a task just returned."""
        if not final:
            if kind == frame.COMPLETION:
                self._begun.add(ticket)
            else:
                self._ledger.note(ticket, body)
        elif kind == frame.COMPLETION:
            self._end(ticket, frame.read_outcome(frame.ENDED, body))
        else:
            self._conclude(ticket, frame.read_outcome(kind, body))

    def lose(self, loss: Loss) -> None:
        """A worker died with this run in its hands."""
        self._conclude(loss.ticket, frame.outcome_of_loss(loss, loss.ticket in self._ledger.cancelled))

    def _conclude(self, ticket: int, outcome: Outcome) -> None:
        if ticket in self._begun:
            self._end(ticket, outcome)
        else:
            self._ledger.conclude(ticket, outcome)

    def _end(self, ticket: int, outcome: Outcome) -> None:
        if ticket not in self._ended:  # a loss is told until its slot is free
            self._ended[ticket] = outcome
            self._pause = self._look_at = 0.0

    def look(self) -> int:
        """Ask the store what became of those that ended, if it is time; how many are settled by that. Raises BackendDown."""
        if not self._ended or monotonic() < self._look_at:
            return 0
        if self._pause == 0.0:  # there are others than the last time
            self._notices.leave(_encode(list(self._ended.items())), COMPLETIONS_AT)
        tickets = list(self._ended)
        known = [(ticket, job) for ticket in tickets if (job := self._ledger.jobs.get(ticket)) is not None]
        ask = getattr(self._backend, "completions", None)
        answers = [Became.LOST] * len(known) if ask is None else ask([(job.id, job.lease) for _, job in known])
        for (ticket, job), became in zip(known, answers, strict=True):
            self._take(ticket, job, became)
        for ticket in set(tickets) - {ticket for ticket, _ in known}:  # of a lease that is no longer ours
            self._ledger.drop(ticket)
            self._forget(ticket)
        self._pause = min(MOST_S, max(FIRST_S, 2 * self._pause))
        self._look_at = monotonic() + self._pause
        return len(tickets) - len(self._ended)

    def _take(self, ticket: int, job: Job, became: Became) -> None:
        outcome = self._ended[ticket]
        match became:
            case Became.OPEN:
                self._wait(ticket, job)
                return
            case Became.UNDONE:
                self._ledger.decide(ticket, job, uncommitted(outcome, ticket in self._ledger.lingering))
            case Became.DONE:
                self._ledger.completed(ticket, job)
                if outcome.verdict != "done":
                    log.warning(
                        "Job %s (%s) is done, since it was completed; what came after that counts for nothing: %s, %s",
                        job.id,
                        job.type,
                        outcome.verdict,
                        (outcome.error or "").rpartition("\n")[2],
                    )
            case Became.LOST:
                self._ledger.drop(ticket)
                why = "was taken away from its run before that could complete it"
                log.warning("Job %s (%s) %s; what is stored of it counts.", job.id, job.type, why)
        self._forget(ticket)

    def _wait(self, ticket: int, job: Job) -> None:
        self._ledger.lingering.add(ticket)
        if self._pause >= MOST_S and ticket not in self._warned:
            self._warned.add(ticket)
            why = "has ended, and the transaction in which it completed its job has not: commit it before the task returns"
            log.warning("The run of job %s (%s) %s.", job.id, job.type, why)

    def _forget(self, ticket: int) -> None:
        self._ended.pop(ticket, None)
        self._begun.discard(ticket)
        self._warned.discard(ticket)
