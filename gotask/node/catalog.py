"""What a dispatcher knows of queues and tasks: the store's queue records and its workers' task table, merged."""

from collections.abc import Sequence
from typing import Final

from gotask import policy
from gotask.backends import Backend
from gotask.clock import monotonic
from gotask.model import DEFAULT_RULES, Job, Queue, Rules
from gotask.node.notices import Notices, TaskSpec

FRESH_S: Final = 2.0  #: seconds until queue records are read again; the store judges pause and limits itself meanwhile


class Catalog:
    def __init__(self, backend: Backend, notices: Notices, only: Sequence[str]) -> None:
        self._backend = backend
        self.notices = notices
        self._only = list(only)
        self._queues: dict[str, Queue] = {}
        self._timeouts: dict[tuple[str, str], float] = {}
        self._read_at = float("-inf")
        self.tasks: dict[str, TaskSpec] | None = None
        self.tiers: list[list[Queue]] = []

    @property
    def names(self) -> list[str]:
        """The queues served: those asked for, else those that the tasks name, and `default`."""
        if self._only:
            return self._only
        return sorted({"default", *(spec.queue for spec in (self.tasks or {}).values())})

    @property
    def limited(self) -> bool:
        """Whether a served queue has a limit, so that it may give more later without anybody ringing."""
        return any(queue.max_workers or queue.rate_limit for tier in self.tiers for queue in tier)

    def refresh(self, force: bool = False) -> None:
        """Read the task table and the queue records when it is time. Raises BackendDown."""
        if not force and monotonic() - self._read_at < (FRESH_S if self.tasks is not None else 0.0):
            return
        self.tasks = self.notices.tasks() or self.tasks  # while a new generation writes its table, the old one stands
        self._queues = {queue.name: queue for queue in self._backend.all(Queue)}
        self._read_at = monotonic()
        self._timeouts.clear()
        self.tiers = policy.tiers([self._queues.get(name) or Queue(name=name) for name in self.names])

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
