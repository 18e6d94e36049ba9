"""The node's HTTP port: is it alive, is it ready, and what it measured. Runs in a thread of the dispatcher's process."""

import logging
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gotask._core.ring import Segment
from gotask.clock import monotonic
from gotask.node.catalog import Catalog
from gotask.node.dispatcher import Dispatcher
from gotask.node.leaser import REST_S
from gotask.states import Event

ALIVE_S: Final = 60.0  #: seconds without a turn of the loop after which only a restart helps
BUCKETS_AT: Final = 3  #: cell of a worker's counters at which its histogram begins
#: event -> the counter it is shown in
COUNTERS: Final = {
    Event.ACK: "taskqueue_jobs_completed",
    Event.BURY: "taskqueue_jobs_failed",
    Event.RETRY: "taskqueue_jobs_retried",
    Event.RELEASE: "taskqueue_jobs_released",
    Event.CANCEL: "taskqueue_jobs_cancelled",
}
log = logging.getLogger("gotask.node")


class Probe:
    def __init__(self, dispatcher: Dispatcher, segment: Segment, catalog: Catalog, lease_s: float) -> None:
        self._dispatcher = dispatcher
        self._segment = segment
        self._catalog = catalog
        self._lease_s = lease_s
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._server: ThreadingHTTPServer | None = None

    def serve(self, address: str, port: int) -> None:
        """Listen; a node whose port is taken (a second one on this machine, say) works without."""
        try:
            server = ThreadingHTTPServer((address, port), handler(self))
        except OSError as error:
            log.warning("No health port: %s:%d cannot be had (%s); give --health-port another.", address, port, error.strerror)
            return
        self._server = server
        Thread(target=server.serve_forever, name="probe", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def alive(self) -> str | None:
        """None if the loop turns, as it does at least each second; a store that hangs has its own deadline, far below this."""
        still = monotonic() - self._dispatcher.turned_at
        return None if still < ALIVE_S else f"The dispatcher has not moved for {still:.0f} seconds."

    def ready(self) -> str | None:
        """None if this node takes work; else the reason, as a sentence."""
        if self._dispatcher.draining:
            return "The node is stopping."
        if self._catalog.tasks is None:
            return "No worker has loaded its tasks yet."
        if not self._dispatcher.adopted:
            return "The store has not answered yet."
        silent = monotonic() - self._dispatcher.answered_at
        if silent > max(self._lease_s / 3, 2 * REST_S):
            return f"The store has not answered for {silent:.0f} seconds."
        return None

    def page(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for one GET."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        checks = {"/livez": self.alive, "/health": self.alive, "/readyz": self.ready, "/ready": self.ready}
        if path not in checks:
            return 404, "text/plain; charset=utf-8", b"There are /livez, /readyz and /metrics.\n"
        trouble = checks[path]()
        return (503 if trouble else 200), "text/plain; charset=utf-8", f"{trouble or 'ok'}\n".encode()

    def collect(self) -> Iterable[Metric]:
        yield from self._ends()
        cells = np.array(
            [np.frombuffer(self._segment.counters(index), dtype=np.uint64) for index in range(self._segment.workers)]
        )
        per_worker = CounterMetricFamily("taskqueue_worker_jobs", "Jobs that ended in a worker process.", labels=["worker"])
        for index, row in enumerate(cells):
            per_worker.add_metric([str(index)], float(row[1]))
        yield per_worker
        yield self._durations(cells.sum(axis=0))
        slots = GaugeMetricFamily("taskqueue_worker_slots", "Places for running jobs.", labels=["state"])
        busy = self._segment.check()["taken"]
        slots.add_metric(["busy"], busy)
        slots.add_metric(["total"], self._dispatcher.slots)
        yield slots

    def _ends(self) -> Iterable[Metric]:
        families = {
            event: CounterMetricFamily(name, f"Jobs whose run ended with {event}.", labels=["queue", "type"])
            for event, name in COUNTERS.items()
        }
        ledger = self._dispatcher.ledger
        acks = [((queue, kind, Event.ACK), count) for (queue, kind), count in list(ledger.acks.items())]
        for (queue, kind, event), count in [*acks, *ledger.ends.items()]:
            if event in families:
                families[event].add_metric([queue, kind], count)
        return families.values()

    def _durations(self, cells: "np.ndarray[tuple[int], np.dtype[np.uint64]]") -> Metric:
        """The run times that workers counted in C, as cumulative buckets in seconds."""
        family = HistogramMetricFamily("taskqueue_job_duration_seconds", "How long runs took.")
        edges = [f"{bucket_edge(index):.3g}" for index in range(len(cells) - BUCKETS_AT)]
        counts = np.cumsum(cells[BUCKETS_AT:]).tolist()
        family.add_metric([], [*zip(edges[:-1], counts, strict=False), ("+Inf", counts[-1])], float(cells[2]) / 1e9)
        return family


def bucket_edge(index: int) -> float:
    """Seconds at which a bucket of run times ends: two to each doubling, from a microsecond up."""
    after = index + 1
    nanoseconds: float = 2.0 ** (9 + (after + 1) / 2) if after % 2 else 1.5 * 2.0 ** (9 + after / 2)
    return nanoseconds / 1e9


def handler(probe: Probe) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = probe.page(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    return Handler
