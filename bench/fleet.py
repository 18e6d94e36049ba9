"""A thousand idle nodes, as Redis sees them, from one process: each with its doorbells and its looks at the store.

The calls and their pauses are those of gotask/node (leaser, dispatcher, catalog): a look for jobs, a tick, the queue records,
the node's own record. Nothing is simulated on the other side: these are real connections to a real Redis.
"""

import heapq
import random
import time
from collections.abc import Callable, Iterator

from gotask import backends
from gotask.backends import Backend, Watch
from gotask.model import Queue, Worker
from gotask.node.catalog import CALM_S
from gotask.node.dispatcher import BEATS_PER_LEASE, TICK_S
from gotask.node.leaser import REST_S

LEASE_S = 30.0
WATCHES = 2  #: of a node: the dispatcher's, and that of the thread which listens while it sleeps at the segment
HEAR_S = 0.25  #: seconds between two looks at what a doorbell has said

Call = tuple[float, Callable[[], object]]  #: seconds between two, and what is done


class IdleNode:
    def __init__(self, url: str, number: int, slots: int) -> None:
        self.backend: Backend = backends.open(url)
        self._worker = Worker(name=f"node-{number}", host=f"host-{number}", slots=slots, queues=["default"])
        self._wants = {"default": slots}
        topics = [f"node:{self._worker.name}", "queue:default"]
        self.watches: list[Watch] = [self.backend.watch(topics) for _ in range(WATCHES)]

    def calls(self) -> Iterator[Call]:
        backend, name = self.backend, self._worker.name
        yield REST_S, lambda: backend.lease(self._wants, name, LEASE_S)
        yield TICK_S, backend.tick
        yield CALM_S, lambda: backend.all(Queue)
        yield LEASE_S / BEATS_PER_LEASE, lambda: backend.put(self._worker)
        for watch in self.watches:
            yield HEAR_S * 40, lambda watch=watch: watch.wait(0.0)  # type: ignore[misc]

    def close(self) -> None:
        for watch in self.watches:
            watch.close()
        self.backend.close()


def live(nodes: list[IdleNode], seconds: float) -> int:
    """Let all nodes idle for `seconds`; how many calls that were."""
    begun = time.monotonic()
    agenda: list[tuple[float, int, float, Callable[[], object]]] = []
    for node in nodes:
        for pause, call in node.calls():
            heapq.heappush(agenda, (begun + random.uniform(0, pause), len(agenda), pause, call))
    made = 0
    while (due := agenda[0][0]) < begun + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        due, tie, pause, call = heapq.heappop(agenda)
        call()
        made += 1
        heapq.heappush(agenda, (due + pause, tie, pause, call))
    return made
