"""What a dispatcher knows of queues and tasks: the store's queue records and its workers' task table, merged."""

from collections.abc import Sequence
from typing import Final

from gotask import policy
from gotask.backends import Backend
from gotask.clock import monotonic
from gotask.model import DEFAULT_RULES, Job, Queue, Rules
from gotask.node.notices import Notices, TaskSpec

CALM_S: Final = 15.0  #: seconds until queue records are read again; a change of one rings, so this is for a lost ring
FRESH_S: Final = 2.0  #: seconds between two readings, however often it rings; the store judges pause and limits itself
TABLE_S: Final = 2.0  #: seconds until the task table is read again; a new generation of workers may have written another


class Catalog:
    def __init__(self, backend: Backend, notices: Notices, only: Sequence[str]) -> None:
        self._backend = backend
        self.notices = notices
        self._only = list(only)
        self._queues: dict[str, Queue] = {}
        self._timeouts: dict[tuple[str, str], float] = {}
        self._read_at = self._table_at = float("-inf")
        self._outdated = False
        self.tasks: dict[str, TaskSpec] | None = None
        self.names: list[str] = []  # the queues served: those asked for, else those that the tasks name, and `default`
        self.tiers: list[list[Queue]] = []
        self._merge()

    @property
    def rated(self) -> bool:
        """Whether a served queue has a rate limit, so that it may give more later without anybody ringing."""
        return any(queue.rate_limit for tier in self.tiers for queue in tier)

    def outdated(self) -> None:
        """It rang, perhaps for a queue record: read them soon."""
        self._outdated = True

    def refresh(self) -> None:
        """Read the task table and the queue records when it is time. Raises BackendDown."""
        if self.tasks is None or monotonic() - self._table_at >= TABLE_S:
            self._read_table()
        if monotonic() - self._read_at >= (FRESH_S if self._outdated else CALM_S):
            self._queues = {queue.name: queue for queue in self._backend.all(Queue)}
            self._outdated = False
            self._read_at = monotonic()
            self._merge()

    def _read_table(self) -> None:
        tasks = self.notices.tasks()
        self._table_at = monotonic()
        if tasks is not None and tasks != self.tasks:  # while a new generation writes its table, the old one stands
            self.tasks = tasks
            self._merge()

    def _merge(self) -> None:
        self.names = self._only or sorted({"default", *(spec.queue for spec in (self.tasks or {}).values())})
        self.tiers = policy.tiers([self._queues.get(name) or Queue(name=name) for name in self.names])
        self._timeouts.clear()

    def rules(self, job: Job) -> Rules:
        """The rules in force for `job`: its own, else its task's, else its queue's."""
        spec = (self.tasks or {}).get(job.type)
        return policy.resolve(job, spec.rules if spec else None, self._queues.get(job.queue))

    def timeout(self, job: Job) -> float:
        """Seconds one run of `job` may take; remembered by type and queue, as this is asked for every job."""
        if job.timeout is not None:
            return job.timeout
        key = (job.type, job.queue)
        known = self._timeouts.get(key)
        if known is None:
            known = self._timeouts[key] = self.rules(job).timeout or DEFAULT_RULES.timeout or 0.0
        return known

    def dead_letters(self, job: Job) -> str | None:
        queue = self._queues.get(job.queue)
        return queue.dead_letter_queue if queue else None
