"""The server's Prometheus metrics. What the store knows is read when asked for; what happens here is counted as it happens."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from gotask import __version__, clock
from gotask.model import Enqueued, NewJob, Queue, Worker
from gotask.states import State

if TYPE_CHECKING:
    from gotask.backends import Backend

PAIRS_MAX: Final = 1000  #: (queue, type) pairs counted apart; names come from clients, and each pair stays in memory
OTHER: Final = "other"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, and nobody asks for it
_registry: Final = CollectorRegistry()
_created: Final = Counter("taskqueue_jobs_created", "Jobs enqueued by this server.", ["queue", "type"], registry=_registry)


class _Counted:
    """A backend whose enqueued jobs are counted. All else goes straight through."""

    def __init__(self, backend: "Backend") -> None:
        self._backend = backend
        self._pairs: set[tuple[str, str]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        answers = self._backend.enqueue_many(jobs)
        for answer in answers:
            if answer.outcome == "created":
                pair = (answer.job.queue, answer.job.type)
                if pair not in self._pairs:
                    if len(self._pairs) >= PAIRS_MAX:
                        pair = (OTHER, OTHER)
                    self._pairs.add(pair)
                _created.labels(*pair).inc()
        return answers


def counted(backend: "Backend") -> "Backend":
    """`backend`, with what is enqueued through it counted."""
    return cast("Backend", _Counted(backend))


def exposition(backend: "Backend") -> Callable[[], tuple[str, bytes]]:
    """What makes the page at /metrics: its content type and body. It asks the store, so it must not run on an event loop."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(backend))
    several = "PROMETHEUS_MULTIPROC_DIR" in os.environ  # as the library decided when it was imported
    counters = CollectorRegistry() if several else _registry
    if several:
        MultiProcessCollector(counters)  # type: ignore[no-untyped-call]

    def page() -> tuple[str, bytes]:
        return CONTENT_TYPE_LATEST, generate_latest(registry) + generate_latest(counters)

    return page


class StoreCollector(Collector):
    """Queues, jobs by state and nodes, as the store has them now."""

    def __init__(self, backend: "Backend") -> None:
        self._backend = backend
        self._since = clock.monotonic()

    def describe(self) -> list[Metric]:  # so that registering does not ask the store
        return []

    def collect(self) -> Iterator[Metric]:
        counts = self._backend.counts()
        records = {queue.name: queue for queue in self._backend.all(Queue)}
        length = GaugeMetricFamily("taskqueue_queue_length", "Jobs that wait for a worker (PENDING).", labels=["queue"])
        jobs = GaugeMetricFamily("taskqueue_queue_jobs", "Jobs by state.", labels=["queue", "state"])
        paused = GaugeMetricFamily("taskqueue_queue_paused", "1 if the queue is paused.", labels=["queue"])
        for name in sorted({queue for queue, _ in counts} | set(records)):
            length.add_metric([name], counts.get((name, State.PENDING), 0))
            paused.add_metric([name], float(name in records and records[name].paused))
            for state in State:
                jobs.add_metric([name, str(state)], counts.get((name, state), 0))
        yield from (length, jobs, paused)
        yield GaugeMetricFamily("taskqueue_workers_active", "Nodes the store knows.", value=len(self._backend.all(Worker)))
        uptime = clock.monotonic() - self._since
        yield GaugeMetricFamily("taskqueue_system_uptime_seconds", "Seconds this process has served.", value=uptime)
        yield InfoMetricFamily("taskqueue_build", "What serves this page.", value={"version": __version__})
