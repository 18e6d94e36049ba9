"""Which jobs a node takes: how many it can start soon, from which queue, and into the segment with them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from gotask import policy
from gotask._core.ring import ALONE, Segment
from gotask.backends import Backend
from gotask.clock import boottime, monotonic
from gotask.errors import BackendDown
from gotask.model import GRACE_S, PRIORITIES, Job, Queue
from gotask.node import frame
from gotask.node.catalog import Catalog
from gotask.node.ledger import Ledger
from gotask.policy import Outcome

REST_S: Final = 2.0  #: seconds a store that had no more is left alone, unless it rings
RATED_REST_S: Final = 0.05  #: seconds between two tries while a rate limit holds jobs back, which nobody rings for
LONG_S: Final = 1.0  #: seconds; until one has run, jobs are taken for long ones, which are not leased ahead
WINDOW_STEP: Final = 16  #: after the segment was full, one more job is leased ahead for so many that ended


class Leaser:
    """`slots` is how many jobs the node's workers run at once."""

    def __init__(
        self,
        backend: Backend,
        segment: Segment,
        catalog: Catalog,
        ledger: Ledger,
        owner: str,
        slots: int,
        lease_s: float,
    ) -> None:
        self._backend = backend
        self._segment = segment
        self._catalog = catalog
        self._ledger = ledger
        self._owner = owner
        self._slots = slots
        self._lease_s = lease_s
        self._turn = 0  # places handed out between queues so far
        self._run_s = LONG_S  # measured
        self._trip_s = 0.005  # measured: seconds from lease to settled, apart from the run
        self._dry_until = 0.0  # the store had nothing more; do not ask again before this, unless the bell rings
        self._held_back: bool | None = None  # whether jobs wait although the store had nothing more; None if nobody looked
        self._looked_at = 0.0
        self.unanswered_at: float | None = None  # when the answer to a lease was lost, and with it perhaps jobs
        self._window = segment.slots  # jobs that fit into the segment at once, as far as their sizes have shown

    def measure_runs(self, seconds: Sequence[float]) -> None:
        """The first measurement counts whole; later a batch of one moves the average slowly, a large one at once."""
        if seconds:
            mean = sum(seconds) / len(seconds)
            weight = 1.0 if self._run_s == LONG_S else min(1.0, 0.1 + len(seconds) / 100)
            self._run_s += (mean - self._run_s) * weight

    def measure_trip(self, seconds: float) -> None:
        self._trip_s += (2 * seconds - self._trip_s) * 0.2  # a lease takes about as long as a settle

    def waited_too_long(self) -> None:
        """Frames lay behind busy workers: jobs are longer than they were taken for."""
        self._run_s = max(self._run_s, policy.RELEASE_AFTER_S)

    def more(self) -> None:
        """The store may have something again."""
        self._dry_until, self._held_back = 0.0, None

    @property
    def rest(self) -> float:
        """Seconds until the store is worth asking, if it does not ring; for ever while there is no room for more."""
        return self._dry_until - monotonic() if self._dry_until else inf

    def anything_waits(self) -> bool:
        """Whether limits keep jobs of the served queues waiting. Raises BackendDown."""
        waiting = {queue.name for tier in self._catalog.tiers for queue in tier if not queue.paused}
        ready = policy.READY
        return any(count and state is ready and name in waiting for (name, state), count in self._backend.counts().items())

    def freed(self, count: int) -> None:
        """So many slots are free again: see step by step whether more fits than last time."""
        self._window = min(self._segment.slots, self._window + 1 + count // WINDOW_STEP)

    def lease(self) -> int:
        """Lease what this node can start soon, and hand it to the workers; how many. Raises BackendDown."""
        if self._catalog.tasks is None or monotonic() < self._dry_until:
            return 0
        in_hand = len(self._ledger.jobs) - len(self._ledger.lingering)
        most = min(self._window, in_hand + self._segment.room())
        room = asked = policy.wanted(self._slots, in_hand, self._run_s, self._trip_s, most)
        for tier in self._catalog.tiers:
            room -= self._lease_tier(tier, room)
        self._dry_until = monotonic() + self._pause() if room else 0.0
        return asked - room

    def _pause(self) -> float:
        """Seconds to leave a store alone that had no more. It rings for all but what a rate lets through in time."""
        if not self._catalog.rated:
            return REST_S
        if self._held_back is None or (self._held_back and monotonic() - self._looked_at >= REST_S):
            self._held_back = self.anything_waits()
            self._looked_at = monotonic()
        return RATED_REST_S if self._held_back else REST_S

    def _lease_tier(self, queues: Sequence[Queue], room: int) -> int:
        """Lease by weight; what a queue leaves unused goes to those that may have more."""
        leased = 0
        while queues and leased < room:
            wants = policy.shares(queues, room - leased, self._turn)
            jobs = self._ask(wants)
            self._turn += len(jobs)
            leased += len(jobs)
            if not self._put(jobs):
                return room  # the segment is full, whatever else there is
            got = Counter(job.queue for job in jobs)
            queues = [queue for queue in queues if got[queue.name] == wants.get(queue.name, 0)]
        return leased

    def _ask(self, wants: Mapping[str, int]) -> list[Job]:
        try:
            return self._backend.lease(wants, self._owner, self._lease_s)
        except BackendDown:
            self.unanswered_at = monotonic()
            raise

    def _put(self, jobs: Sequence[Job]) -> bool:
        """Hand jobs to the workers. What has no task here is snoozed; what has no room is given back, and False returned."""
        tasks, timeout, expires = self._catalog.tasks or {}, self._catalog.timeout, boottime() + self._lease_s
        known = [job for job in jobs if job.type in tasks]
        if len(known) < len(jobs):
            for job in jobs:
                if job.type not in tasks:
                    self._ledger.decide(None, job, Outcome("unknown", f"no worker here has a task called {job.type!r}"))
        frames = []
        for job in known:
            limit = timeout(job)
            frames.append((frame.encode(job, limit), ring_of(job), limit, GRACE_S, expires))
        try:
            tickets = self._segment.put_many(frames)
        except ValueError:
            put = [self._put_alone(job, one) for job, one in zip(known, frames, strict=True)]
            return all(put)
        self._ledger.jobs.update(zip(tickets, known, strict=False))
        for job in known[len(tickets) :]:
            self._give_back(job)
        return len(tickets) == len(known)

    def _put_alone(self, job: Job, one: tuple[bytes, int, float, float, float]) -> bool:
        """One of a batch that the segment refused as a whole."""
        try:
            tickets = self._segment.put_many([one])
        except ValueError as error:
            self._ledger.decide(None, job, Outcome("misfit", f"no worker can be handed this job: {error}"))
            return True
        if tickets:
            self._ledger.jobs[tickets[0]] = job
        else:
            self._give_back(job)
        return bool(tickets)

    def _give_back(self, job: Job) -> None:
        """There was no room for it: lease no more than fits, and find out step by step whether more does."""
        self._window = max(1, len(self._ledger.jobs))
        self._ledger.decide(None, job, Outcome("released"))


def ring_of(job: Job) -> int:
    """The ready ring of a job: its priority's, or that of the suspects."""
    return ALONE if job.crashes else min(max(job.priority, 0), PRIORITIES - 1)
