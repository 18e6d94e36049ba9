"""What a dispatcher has in hand: jobs by ticket, what they said of their progress, and endings not yet written down."""

from collections import Counter

import msgspec

from gotask.model import Job, Settlement
from gotask.node.frame import Progress
from gotask.states import Event

_decode_progress = msgspec.msgpack.Decoder(Progress).decode


class Ledger:
    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.progress: dict[int, Progress] = {}
        self.cancelled: set[int] = set()
        self.settlements: list[Settlement] = []
        self.tickets: set[int] = set()  # slots to free once the settlements are written
        self.ends: Counter[tuple[str, str, Event]] = Counter()  # (queue, type, event) -> how often, for metrics

    @property
    def empty(self) -> bool:
        return not (self.jobs or self.settlements or self.tickets)

    def end(self, ticket: int | None, settlement: Settlement, job: Job | None = None) -> None:
        """Take a job out of hand; `ticket` None if its slot is free already."""
        if ticket is not None:
            job = self.jobs.pop(ticket)
            self.tickets.add(ticket)
            if self.progress:
                self.progress.pop(ticket, None)
            if self.cancelled:
                self.cancelled.discard(ticket)
        self.settlements.append(settlement)
        if job is not None:
            self.ends[job.queue, job.type, settlement.event] += 1

    def dismiss(self, ticket: int) -> None:
        """A run of a lease that is no longer ours: only its slot is of interest."""
        self.tickets.add(ticket)

    def settled(self) -> int:
        """All endings are written down; how many."""
        count = len(self.tickets) + len(self.settlements)
        self.settlements.clear()
        self.tickets.clear()
        return count

    def note(self, ticket: int, body: bytes) -> None:
        if ticket in self.jobs:
            self.progress[ticket] = _decode_progress(body)

    def take_progress(self, ticket: int) -> tuple[float | None, str | None]:
        said = self.progress.pop(ticket, None)
        return (said.percent, said.note) if said else (None, None)

    def is_cancelled(self, ticket: int) -> bool:
        return ticket in self.cancelled
