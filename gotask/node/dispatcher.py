"""The only process of a node that talks to the store: lease → segment → settle.

One thread turns the loop. Nothing here waits for one job: while the store is busy with one batch, the next one gathers in
the report rings, so batches grow with the load by themselves. A dispatcher that replaces a dead one finds all state in the
segment and goes on.
"""

import logging
import random
import time
from math import inf
from typing import Final

import msgspec

from gotask import policy
from gotask._core.ring import Segment
from gotask.clock import monotonic
from gotask.errors import BackendDown
from gotask.model import GRACE_S
from gotask.node import frame
from gotask.node.agenda import Agenda
from gotask.node.bell import Bell
from gotask.node.catalog import Catalog
from gotask.node.completions import Completions
from gotask.node.endings import Endings
from gotask.node.heldup import HeldUp
from gotask.node.leaser import Leaser
from gotask.node.ledger import Ledger
from gotask.node.line import Line
from gotask.node.pulse import BEATS_PER_LEASE, Pulse
from gotask.node.registry import Registry
from gotask.node.settler import LEAST, Settler
from gotask.policy import Outcome

SWEEP_S: Final = 0.25  #: seconds between two looks for frames that wait too long
SLEEP_S: Final = 1.0  #: seconds between two turns; none costs the store anything when nothing is due
TICK_S: Final = 15.0  #: seconds between two ticks when nothing rings and nothing is known to be due
RUNG_S: Final = 0.05  #: seconds from a ring to the tick that it calls for: many rings, one tick
ORPHANS_S: Final = 2.0  #: seconds between two looks for nodes of this machine that are dead
FORGET_S: Final = 3600.0  #: seconds, about, between two readings of all nodes' records, for those nobody has seen for long
RECOVER_S: Final = 2.0  #: seconds between two looks for jobs that were leased unheard
COMPLAIN_S: Final = 10.0  #: seconds between two lines about an outage
DRAIN_MOST: Final = 2 * policy.LEASE_MOST  #: reports settled in one batch
HELD_UP_MOST: Final = policy.LEASE_MOST  #: endings held up by others, with their results in memory, that a node leases beside
log = logging.getLogger("gotask.node")


class Dispatcher:
    """`slots` is how many jobs the node's workers run at once.

    `patience_s` is how many seconds, from when it is told to end, it goes on trying to write down what others hold up.
    """

    def __init__(
        self,
        line: Line,
        segment: Segment,
        catalog: Catalog,
        registry: Registry,
        settler: Settler,
        owner: str,
        slots: int,
        lease_s: float,
        patience_s: float,
    ) -> None:
        self._line = line
        self._backend = line.backend
        self._segment = segment
        self._catalog = catalog
        self._registry = registry
        self._owner = owner
        self.slots = slots
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._agenda = Agenda()
        self._bell = Bell(self._backend, owner, segment.ring_reports)
        self.adopted = False  # whether the store has answered all that must be known before the first turn
        self.ledger = Ledger(catalog)
        self._held_up = HeldUp(self._backend, catalog.notices, segment.ring_reports)
        self._pulse = Pulse(self._backend, segment, self.ledger, self._held_up, self._agenda, self._bell, lease_s)
        self._completions = Completions(self.ledger, self._backend, catalog.notices)
        self._leaser = Leaser(self._backend, segment, catalog, self.ledger, owner, slots, lease_s)
        self._endings = Endings(settler, segment, self.ledger, self._leaser, self._held_up)
        self.draining = False
        self._give_up_at = inf
        self.answered_at = self.turned_at = monotonic()  # when the store last answered, and the loop last turned

    # one turn of the loop

    def run(self, burst: bool = False) -> None:
        """Turn until drained; with `burst` also until the store has nothing to give."""
        while not (self.draining and self.adopted and self._nothing_left):
            seen = self._segment.reports_seen()
            self.turned_at = monotonic()
            answers = self._line.answers
            try:
                moved = self._once()
                self._note_answer(answers)
                if not moved and not self.ledger.settlements:
                    self._sleep(seen, burst)
            except BackendDown as error:
                self._outage(error)
        self._farewell()

    @property
    def _nothing_left(self) -> bool:
        """Whether all in hand is written down, or nothing remains but what is to be given up."""
        return self.ledger.empty and (not self._held_up or monotonic() >= self._give_up_at)

    @property
    def _wants_more(self) -> bool:
        return not self.draining and len(self._held_up) < HELD_UP_MOST

    def _once(self) -> int:
        answers = self._line.answers
        moved = self._take_in()
        self._note_answer(answers)
        many = len(self.ledger.settlements) >= LEAST
        if not many:  # those are quickly written down, and then their slots are free for what is leased
            moved += self._endings.settle()
        self._recover()
        rung = self._bell.take_work()
        if rung:
            self._leaser.more()
            self._catalog.outdated()
        lease = self._leaser.lease if self._wants_more else lambda: 0
        moved += self._endings.settle(meanwhile=lease) if many else lease()
        moved += self._tick(rung)
        self._sweep()
        return moved

    def _take_in(self) -> int:
        """What workers said, and what became of what was held up; and signs of life, before an ending may have to wait."""
        moved = self._collect() if self.adopted else self._adopt()  # before all that may find the store down
        moved += self._completions.look() + self._endings.settle_held_up()
        self._catalog.refresh()
        self._bell.listen(self._catalog.names)
        self._announce()
        self._pulse.beat()
        return moved

    def _sleep(self, seen: int, burst: bool) -> None:
        """Until something is reported, or rings, or comes due by itself. In a burst there is no sleep without work."""
        idle = self.adopted and self.ledger.empty and not self._held_up and self._catalog.tasks is not None
        if idle and burst and not self._leaser.anything_waits():
            self.draining = True
        elif idle:
            self._bell.wait(self._rest())
        else:
            self._bell.hand_over()
            self._segment.wait_reports(seen, self._rest())

    def _rest(self) -> float:
        """Seconds to sleep at most; everything that can be rung for is, so this is only for what comes by itself."""
        duties = {"tick": True, "sweep": bool(self.ledger.jobs), "progress": bool(self.ledger.progress)}
        most = min(SLEEP_S, self._leaser.rest) if self._wants_more else SLEEP_S
        return self._agenda.rest(duties, min(most, self._completions.rest, self._held_up.rest))

    def _outage(self, error: BackendDown) -> None:
        """The store does not answer: keep everything, and try again after a jittered pause, for ever."""
        self._bell.lost()
        self._agenda.at_once("recover")
        self._catalog.notices.cut_off = monotonic() - self.answered_at > self._lease_s
        self._agenda.at_once("beat")  # one that failed was not heard, nor was what it would have been told
        if self._agenda.is_due("complain"):
            log.warning("The store does not answer, %d jobs in hand: %s", len(self.ledger.jobs), error)
            self._agenda.book("complain", COMPLAIN_S)
        time.sleep(random.uniform(0.1, 0.4))

    def _note_answer(self, answers: int) -> None:
        """Nothing that was asked went unanswered so far in this turn, at the begin of which there were so many `answers`."""
        if self._line.answers == answers:
            return
        self.answered_at = monotonic()
        if self._catalog.notices.cut_off:
            self._catalog.notices.cut_off = False

    # what workers said

    def _collect(self) -> int:
        """Turn reports and losses into settlements, unless too many are waiting for the store already."""
        if len(self.ledger.settlements) > DRAIN_MOST:
            return 0
        reports = self._segment.drain(DRAIN_MOST)
        done = [report for report in reports if report[1] == frame.DONE]
        self.ledger.done_many(done)
        if len(done) < len(reports):
            for ticket, kind, final, _, body in reports:
                if kind != frame.DONE:
                    self._completions.hear(ticket, kind, final, body)
        self._leaser.measure_runs([report[3] for report in reports if report[2]])
        for loss in self._segment.losses():
            self._completions.lose(loss)
        return len(self.ledger.tickets)

    # what the store has to say

    def _announce(self) -> None:
        """Say what this node takes, before it takes anything: its record is the proof of whose jobs these are."""
        if self._agenda.is_due("announce"):
            self._registry.announce(self._catalog.names, sorted(self._catalog.tasks or {}))
            self._agenda.book("announce", self._lease_s / BEATS_PER_LEASE)
        if self._agenda.is_due("orphans"):
            self._registry.give_back_orphans(self._held_up)
            self._agenda.book("orphans", ORPHANS_S)
        if self._agenda.is_due("forget"):
            self._registry.forget_unseen()
            self._agenda.book("forget", FORGET_S * random.uniform(0.75, 1.25))

    def _recover(self) -> None:
        """A lease whose answer was lost may have leased jobs that nobody holds; their lapse would be held against them.

        The store may see it later than we gave it up, so this looks again for a while.
        """
        lost_at = self._leaser.unanswered_at
        if lost_at is None or not self._agenda.is_due("recover"):
            return
        in_hand = {(job.id, job.lease) for job in self.ledger.jobs.values()}
        in_hand |= {(ending.id, ending.lease) for ending in self.ledger.settlements} | self._held_up.runs
        if self._registry.release(self._owner, "the answer to its lease was lost", self._held_up, in_hand):
            self._leaser.more()
        if monotonic() - lost_at > self._lease_s / 2:
            self._leaser.unanswered_at = None
        self._agenda.book("recover", RECOVER_S)

    def _tick(self, rung: bool) -> int:
        """Do what is due; `rung`: something came in, and may be due before anything that was known."""
        if rung:
            self._agenda.bring_forward("tick", RUNG_S)
        if not self._agenda.is_due("tick"):
            return 0
        tick = self._backend.tick(policy.LEASE_MOST)
        most = min(TICK_S, self._lease_s / 2)  # of what is leased meanwhile, nothing can lapse before
        self._agenda.book("tick", most if tick.next_in is None else min(most, tick.next_in))
        if tick.promoted or tick.lapsed:
            self._leaser.more()
        return tick.promoted + tick.lapsed

    def _sweep(self) -> None:
        """Give back what has waited behind busy workers."""
        if not self._agenda.is_due("sweep"):
            return
        self._agenda.book("sweep", SWEEP_S)
        for ticket in self._segment.recall(0.0 if self.draining else policy.RELEASE_AFTER_S):
            self._leaser.waited_too_long()
            self.ledger.unstarted(ticket, Outcome("released"))

    # beginning and end

    def _adopt(self) -> int:
        """Learn from the segment what a dead predecessor had in hand, and give back what it had not put there."""
        self._catalog.refresh()
        frames: dict[int, frame.Frame] = {}
        for stay in self._segment.adopt():
            try:
                frames[stay.ticket] = frame.decode(stay.body)
            except msgspec.MsgspecError:  # scribbled on: nobody's job any more, only a slot to win back
                self._segment.cancel(stay.ticket, GRACE_S)
        jobs = self._backend.get_many([one.id for one in frames.values()]) if frames else []
        for (ticket, one), job in zip(frames.items(), jobs, strict=True):
            if job is not None and job.lease == one.lease:
                self.ledger.jobs[ticket] = job
            else:
                self._segment.cancel(ticket, GRACE_S)
        self._completions.adopt()
        self._held_up.adopt()
        # What it had leased and not yet handed over is in nobody's hands; its lapse would be held against it.
        in_hand = {(one.id, one.lease) for one in frames.values()} | self._held_up.runs
        self._registry.release(self._owner, "its dispatcher was restarted", self._held_up, in_hand)
        if frames:
            log.info("Took over %d jobs from the dispatcher before.", len(self.ledger.jobs))
        self._registry.introduce()
        self.adopted = True
        return len(frames)

    def drain(self) -> None:
        """Lease no more; end when all in hand has ended. Safe to call from a signal handler.

        An ending that others hold up has as long for that as a job that runs; then its job is left to the lapse of its lease.
        """
        self._give_up_at = monotonic() + self._patience_s
        self.draining = True
        self._agenda.at_once("sweep")

    def _farewell(self) -> None:
        self._bell.close()
        self._agenda.at_once("recover")  # nobody will look again
        try:
            self._recover()
            self._registry.leave()
        except BackendDown as error:
            log.warning("The store does not answer, so this node stays listed until another one here sees its end: %s", error)
        self._endings.close()
