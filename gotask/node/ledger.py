"""What a dispatcher has in hand: jobs by ticket, what they said of their progress, and how they end."""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Final

import msgspec

from gotask import policy
from gotask._core.ring import Report
from gotask.model import Job, Settlement
from gotask.node.catalog import Catalog
from gotask.node.frame import Progress
from gotask.policy import Outcome
from gotask.states import Event

ACK: Final = Event.ACK  # an enum's member costs a lookup, and this one is needed for every job
NOTHING: Final = b"null"  #: the result of a task that returned None; a job without one says the same, and costs less
log = logging.getLogger("gotask.node")
_queue_and_type: Final = attrgetter("queue", "type")
_decode_progress: Final = msgspec.msgpack.Decoder(Progress).decode


class Ledger:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.jobs: dict[int, Job] = {}
        self.progress: dict[int, Progress] = {}
        self.cancelled: set[int] = set()
        self.lingering: set[int] = set()  # whose task has ended, and its own transaction has not
        self.settlements: list[Settlement] = []
        self.tickets: set[int] = set()  # slots to free once the settlements are written
        self._writing: tuple[list[Settlement], set[int]] = ([], set())  # what was taken to be written down
        self.acks: Counter[tuple[str, str]] = Counter()  # (queue, type) -> jobs done, for metrics
        self.ends: Counter[tuple[str, str, Event]] = Counter()  # (queue, type, event) -> runs that ended in any other way

    @property
    def empty(self) -> bool:
        return not (self.jobs or self.settlements or self.tickets or any(self._writing))

    def done_many(self, reports: Sequence[Report]) -> None:
        """Tasks returned; a ticket that is not in hand has only a slot to free. The hot path: no call and no hash too many."""
        take, settle, ended = self.jobs.pop, self.settlements.append, []
        tickets = [report[0] for report in reports]
        for ticket, _, _, _, result in reports:
            job = take(ticket, None)
            if job is not None:
                settle(Settlement(job.id, job.lease, ACK, None, None if result == NOTHING else result))
                ended.append(job)
        self.tickets.update(tickets)
        self.acks.update(map(_queue_and_type, ended))
        if self.progress or self.cancelled:
            for ticket in tickets:
                self._forget(ticket)

    def conclude(self, ticket: int, outcome: Outcome) -> None:
        """A run ended in another way than by returning."""
        job = self.jobs.get(ticket)
        if job is None:
            self.tickets.add(ticket)  # of a lease that is no longer ours: only its slot is of interest
        else:
            self.decide(ticket, job, outcome)

    def unstarted(self, ticket: int, outcome: Outcome) -> None:
        """A frame was taken back before any worker claimed it; its slot is free already."""
        job = self.jobs.pop(ticket, None)
        if job is not None:
            self.decide(None, job, outcome)

    def decide(self, ticket: int | None, job: Job, outcome: Outcome) -> None:
        """How a lease ends, given what its run came to; `ticket` None if its slot is free already."""
        rules, dead_letters = self._catalog.rules(job), self._catalog.dead_letters(job)
        settlement = policy.decide(job, outcome, rules, dead_letters, random.random())
        if settlement.event in (Event.RETRY, Event.BURY):
            line = (outcome.error or "").rstrip().rpartition("\n")[2]
            log.info("Job %s (%s): %s, %s: %s", job.id, job.type, outcome.verdict, settlement.event, line)
        self._end(ticket, settlement, job)

    def completed(self, ticket: int, job: Job) -> None:
        """The task ended its job in a transaction of its own, so there is nothing to write down."""
        self.drop(ticket)
        self.acks[job.queue, job.type] += 1

    def drop(self, ticket: int) -> None:
        """A run ended whose job is no longer in its hands: only its slot is of interest."""
        self.jobs.pop(ticket, None)
        self.tickets.add(ticket)
        self._forget(ticket)

    def _end(self, ticket: int | None, settlement: Settlement, job: Job) -> None:
        if ticket is not None:
            self.drop(ticket)
        self.settlements.append(settlement)
        self.ends[job.queue, job.type, settlement.event] += 1

    def _forget(self, ticket: int) -> None:
        self.progress.pop(ticket, None)
        self.cancelled.discard(ticket)
        self.lingering.discard(ticket)

    def take_ended(self) -> tuple[list[Settlement], set[int]]:
        """The endings to write down now, and the slots to free after; in hand until it is said what became of them."""
        self._writing, self.settlements, self.tickets = (self.settlements, self.tickets), [], set()
        return self._writing

    def written(self) -> int:
        """All endings that were taken are written down; how many."""
        settlements, tickets = self._writing
        self._writing = ([], set())
        return len(settlements) + len(tickets)

    def unwritten(self) -> None:
        """They may not be written down, and are to be taken again."""
        settlements, tickets = self._writing
        self._writing = ([], set())
        self.settlements[:0] = settlements
        self.tickets |= tickets

    def note(self, ticket: int, body: bytes) -> None:
        if ticket in self.jobs:
            with suppress(msgspec.MsgspecError):  # a task's nonsense must not stop a node
                self.progress[ticket] = _decode_progress(body)

    def take_progress(self, ticket: int) -> tuple[float | None, str | None]:
        said = self.progress.pop(ticket, None)
        return (said.percent, said.note) if said else (None, None)
