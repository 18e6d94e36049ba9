"""The only process of a node that talks to the store: lease → segment → settle.

One thread turns the loop. Nothing here waits for one job: while the store is busy with one batch, the next one gathers in
the report rings, so batches grow with the load by themselves. A dispatcher that replaces a dead one finds all state in the
segment and goes on.
"""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from gotask import policy
from gotask._core.ring import ALONE, Segment
from gotask.backends import Backend
from gotask.clock import boottime, monotonic
from gotask.errors import BackendDown
from gotask.model import GRACE_S, Beat, Held, Job, Queue
from gotask.node import frame
from gotask.node.bell import Bell
from gotask.node.catalog import Catalog
from gotask.node.ledger import Ledger
from gotask.node.registry import Registry
from gotask.policy import Outcome
from gotask.states import Event

BEATS_PER_LEASE: Final = 3  #: this many signs of life may be lost before a job is taken away
PROGRESS_S: Final = 0.3  #: seconds between two writes of what running tasks say of their progress
SWEEP_S: Final = 0.25  #: seconds between two looks for frames that wait too long
REST_S: Final = 1.0  #: seconds; the longest sleep, so that a lost wake-up costs no more
LIMITED_REST_S: Final = 0.05  #: seconds between two tries while a limit of a queue may free places unannounced
LONG_S: Final = 1.0  #: seconds; until one has run, jobs are taken for long ones, which are not leased ahead
DRAIN_MOST: Final = 2 * policy.LEASE_MOST  #: reports settled in one batch
log = logging.getLogger("gotask.node")


class Dispatcher:
    """`slots` is how many jobs the node's workers run at once."""

    def __init__(
        self, backend: Backend, segment: Segment, catalog: Catalog, registry: Registry, owner: str, slots: int, lease_s: float
    ) -> None:
        self._backend = backend
        self._segment = segment
        self._catalog = catalog
        self._registry = registry
        self._owner = owner
        self.slots = slots
        self._lease_s = lease_s
        self._bell: Bell | None = None
        self._adopted = False
        self._turn = 0  # places handed out between queues so far
        self._run_s = LONG_S  # measured
        self._trip_s = 0.005  # measured: seconds from lease to settled, apart from the run
        self._dry_until = 0.0  # the store had nothing more; do not ask again before this, unless the bell rings
        self._full = False  # the segment had no room for a frame
        self._due: dict[str, float] = {}  # what is done from time to time -> when next
        self.ledger = Ledger()
        self.draining = False
        self.answered_at = self.turned_at = monotonic()  # when the store last answered, and the loop last turned

    # one turn of the loop

    def run(self, burst: bool = False) -> None:
        """Turn until drained; with `burst` also until the store has nothing to give."""
        while not (self.draining and self._adopted and self.ledger.empty):
            seen = self._segment.reports_seen()
            self.turned_at = monotonic()
            try:
                moved = self._once()
                self._heard()
                if not moved and not self.ledger.settlements:
                    self._sleep(seen, burst)
            except BackendDown as error:
                self._outage(error, seen)
        self._farewell()

    def _sleep(self, seen: int, burst: bool) -> None:
        """Until something is reported, or rings, or comes due by itself. In a burst there is no sleep without work."""
        idle = self._adopted and self.ledger.empty and self._catalog.tasks is not None
        if idle and burst:
            self.draining = True
        elif idle and self._bell is not None:
            self._bell.wait(self._rest())
        else:
            if self._bell is not None:
                self._bell.hand_over()
            self._segment.wait_reports(seen, self._rest())

    def _once(self) -> int:
        self._catalog.refresh(self._bell is None)
        if not self._adopted:
            self._adopt()
        moved = self._collect() + self._settle()
        self._beat()
        self._tick()
        self._sweep()
        return moved + self._lease()

    def _outage(self, error: BackendDown, seen: int) -> None:
        """The store does not answer: keep everything, and try again after a jittered pause, for ever."""
        self._catalog.notices.cut_off = monotonic() - self.answered_at > self._lease_s
        if self._is_due("outage", 10.0):
            log.warning("The store does not answer, %d jobs in hand: %s", len(self.ledger.jobs), error)
        self._segment.wait_reports(seen, random.uniform(0.1, 0.5))

    def _heard(self) -> None:
        """The store has answered all that was asked in this turn."""
        self.answered_at = monotonic()
        if self._catalog.notices.cut_off:
            self._catalog.notices.cut_off = False

    def _is_due(self, what: str, every: float) -> bool:
        now = monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True

    def _rest(self) -> float:
        """Seconds to sleep at most; everything that can be rung for is, so this is only for what comes by itself."""
        now = monotonic()
        until = min(now + REST_S, self._due.get("tick", now + REST_S))
        if self.ledger.jobs:
            until = min(until, self._due["sweep"])
        if self.ledger.progress:
            until = min(until, self._due["progress"])
        if not self.draining and self._catalog.limited:
            until = min(until, max(self._dry_until, now + LIMITED_REST_S))
        return max(0.001, until - now)

    # what workers said

    def _collect(self) -> int:
        """Turn reports and losses into settlements, unless too many are waiting for the store already."""
        if len(self.ledger.settlements) > DRAIN_MOST:
            return 0
        reports = self._segment.drain(DRAIN_MOST)
        ledger = self.ledger
        done = [report for report in reports if report[1] == frame.DONE]
        ledger.done_many(done)
        if len(done) < len(reports):
            for ticket, kind, final, _, body in reports:
                if final and kind != frame.DONE:
                    self._conclude(ticket, frame.read_outcome(kind, body))
                elif not final:
                    ledger.note(ticket, body)
        self._measure_runs([report[3] for report in reports if report[2]])
        for loss in self._segment.losses():
            self._conclude(loss.ticket, frame.outcome_of_loss(loss, loss.ticket in ledger.cancelled))
        return len(ledger.tickets)

    def _measure_runs(self, seconds: Sequence[float]) -> None:
        """The first measurement counts whole; later a batch of one moves the average slowly, a large one at once."""
        if seconds:
            mean = sum(seconds) / len(seconds)
            weight = 1.0 if self._run_s == LONG_S else min(1.0, 0.1 + len(seconds) / 100)
            self._run_s += (mean - self._run_s) * weight

    def _conclude(self, ticket: int, outcome: Outcome) -> None:
        """A run ended in another way than by returning."""
        job = self.ledger.jobs.get(ticket)
        if job is None:
            self.ledger.tickets.add(ticket)  # of a lease that is no longer ours: only its slot is of interest
        else:
            self._decide(ticket, job, outcome)

    def _decide(self, ticket: int | None, job: Job, outcome: Outcome) -> None:
        rules, dead_letters = self._catalog.rules(job), self._catalog.dead_letters(job)
        settlement = policy.decide(job, outcome, rules, dead_letters, random.random())
        if settlement.event in (Event.RETRY, Event.BURY):
            line = (outcome.error or "").rstrip().rpartition("\n")[2]
            log.info("Job %s (%s): %s, %s: %s", job.id, job.type, outcome.verdict, settlement.event, line)
        self.ledger.end(ticket, settlement, job)

    def _settle(self) -> int:
        """Write all endings down, then free their slots, then let workers overwrite the reports: in this order."""
        settlements = self.ledger.settlements
        if settlements:
            begun = monotonic()
            held = self._backend.settle_many(settlements)
            self._measure_trip(monotonic() - begun)
            fenced = len(held) - sum(held)
            if fenced:
                log.warning("%d jobs had been taken away before they were settled; those runs do not count.", fenced)
            if any(settlement.event is Event.RELEASE for settlement in settlements):
                self._dry_until = 0.0
        if self.ledger.tickets:
            self._segment.free_many(list(self.ledger.tickets))
            self._full = False
        self._segment.forget()
        return self.ledger.settled()

    def _measure_trip(self, seconds: float) -> None:
        self._trip_s += (2 * seconds - self._trip_s) * 0.2  # a lease takes about as long as a settle

    # what the store has to say

    def _lease(self) -> int:
        if self.draining or self._full or self._catalog.tasks is None:
            return 0
        if self._bell is not None and self._bell.work:
            self._bell.work = False
        elif monotonic() < self._dry_until:
            return 0
        room = policy.wanted(
            self.slots, len(self.ledger.jobs), self._run_s, self._trip_s, len(self.ledger.jobs) + self._segment.room()
        )
        asked = room
        for tier in self._catalog.tiers:
            room -= self._lease_tier(tier, room)
        dry = LIMITED_REST_S if self._catalog.limited else REST_S
        self._dry_until = monotonic() + dry if room else 0.0
        return asked - room

    def _lease_tier(self, queues: Sequence[Queue], room: int) -> int:
        """Lease by weight; what a queue leaves unused goes to those that still had more."""
        leased = 0
        while queues and leased < room and not self._full:
            wants = policy.shares(queues, room - leased, self._turn)
            jobs = self._backend.lease(wants, self._owner, self._lease_s)
            self._turn += len(jobs)
            leased += len(jobs)
            self._put(jobs)
            got = Counter(job.queue for job in jobs)
            queues = [queue for queue in queues if got[queue.name] and got[queue.name] == wants.get(queue.name)]
        return leased

    def _put(self, jobs: Sequence[Job]) -> None:
        """Hand jobs to the workers. What has no task here is snoozed, what has no room is given back."""
        tasks, timeout, expires = self._catalog.tasks or {}, self._catalog.timeout, boottime() + self._lease_s
        known = [job for job in jobs if job.type in tasks]
        frames = []
        for job in known:
            limit = timeout(job)
            frames.append((frame.encode(job, limit), ALONE if job.crashes else job.priority, limit, GRACE_S, expires))
        tickets = self._segment.put_many(frames)
        self.ledger.jobs.update(zip(tickets, known, strict=False))
        if len(known) < len(jobs):
            for job in jobs:
                if job.type not in tasks:
                    self._decide(None, job, Outcome("unknown", f"no worker here has a task called {job.type!r}"))
        for job in known[len(tickets) :]:
            self._full = True
            self._decide(None, job, Outcome("released", "the node had no room for it"))

    def _beat(self) -> None:
        """Extend what is in hand: all of it from time to time, and at once when somebody asks for something to stop."""
        asked = self._bell is not None and self._bell.attention
        if asked and self._bell is not None:
            self._bell.attention = False
        if asked or self._is_due("beat", self._lease_s / BEATS_PER_LEASE):
            self._extend(list(self.ledger.jobs))
            if not asked:
                self._registry.announce(self._catalog.names, sorted(self._catalog.tasks or {}))
        elif self.ledger.progress and self._is_due("progress", PROGRESS_S):
            self._extend(list(self.ledger.progress))

    def _extend(self, tickets: Sequence[int]) -> None:
        pairs = [(ticket, job) for ticket in tickets if (job := self.ledger.jobs.get(ticket))]
        beats = [Beat(job.id, job.lease, *self.ledger.take_progress(ticket)) for ticket, job in pairs]
        if not beats:
            return
        for (ticket, job), held in zip(pairs, self._backend.extend_many(beats, self._lease_s), strict=True):
            if held is Held.CANCEL and ticket not in self.ledger.cancelled:
                self._cancel(ticket, job)

    def _cancel(self, ticket: int, job: Job) -> None:
        if self._segment.cancel(ticket, GRACE_S):
            self.ledger.cancelled.add(ticket)
        elif ticket in self.ledger.jobs:
            self._decide(None, job, Outcome("cancelled", "cancelled before it started"))
            del self.ledger.jobs[ticket]

    def _tick(self) -> None:
        if monotonic() < self._due.get("tick", 0.0):
            return
        tick = self._backend.tick(policy.LEASE_MOST)
        pause = REST_S if tick.next_in is None else min(REST_S, tick.next_in)
        self._due["tick"] = monotonic() + pause
        if tick.promoted or tick.lapsed:
            self._dry_until = 0.0

    def _sweep(self) -> None:
        """Give back what has waited behind busy workers, and notice jobs of a dead neighbour."""
        if self._is_due("sweep", SWEEP_S):
            for ticket in self._segment.recall(0.0 if self.draining else policy.RELEASE_AFTER_S):
                job = self.ledger.jobs.pop(ticket, None)
                if job is not None:
                    self._run_s = max(self._run_s, policy.RELEASE_AFTER_S)
                    self._decide(None, job, Outcome("released", "all workers of the node were busy"))
        if self._is_due("orphans", 2.0):
            self._registry.give_back_orphans()

    # beginning and end

    def _adopt(self) -> None:
        """Learn from the segment what a dead predecessor had in hand, and start listening."""
        stays = self._segment.adopt()
        frames = [frame.decode(stay.body) for stay in stays]
        jobs = self._backend.get_many([one.id for one in frames]) if frames else []
        for stay, one, job in zip(stays, frames, jobs, strict=True):
            if job is not None and job.lease == one.lease:
                self.ledger.jobs[stay.ticket] = job
            else:
                self._segment.cancel(stay.ticket, GRACE_S)
        # What it had leased and not yet handed over is in nobody's hands; its lapse would be held against it.
        self._registry.release(self._owner, "its dispatcher was restarted", {one.id for one in frames})
        if stays:
            log.info("Took over %d jobs from the dispatcher before.", len(self.ledger.jobs))
        topics = [f"node:{self._owner}", *(f"queue:{name}" for name in self._catalog.names)]
        self._bell = Bell(self._backend, topics, self._segment.ring_reports)
        self._bell.start()
        self._adopted = True

    def drain(self) -> None:
        """Lease no more; end when all in hand has ended. Safe to call from a signal handler."""
        self.draining = True
        self._due["sweep"] = 0.0

    def _farewell(self) -> None:
        if self._bell is not None:
            self._bell.close()
        try:
            self._registry.leave()
        except BackendDown as error:
            log.warning("The store does not answer, so this node stays listed until somebody sees its lock free: %s", error)
