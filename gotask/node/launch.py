"""Puts a node together: the segment, the arbiter, and what its dispatcher does."""

import gc
import os
import signal
import socket
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from gotask import backends
from gotask._core.ring import Segment
from gotask.backends.sqlite.home import private_folder, state_folder
from gotask.clock import boot_id, from_epoch, now
from gotask.errors import NotConfigured
from gotask.model import Worker
from gotask.node.arbiter import Arbiter
from gotask.node.catalog import Catalog
from gotask.node.dispatcher import Dispatcher
from gotask.node.line import Line
from gotask.node.notices import Notices
from gotask.node.outlook import Outlook
from gotask.node.registry import LifeLine, Registry, new_owner
from gotask.node.settler import Settler
from gotask.node.worker import say_ready, take_signals
from gotask.settings import WorkerSettings, is_embedded

SLOTS_LEAST: Final = 4096  #: slots for frames of short jobs, which are leased by the thousand
SLOTS_PER_JOB: Final = 2  #: slots for each job that may run at once: one running, one reported and not yet settled
GENERATIONS: Final = 2  #: workers of an old and of a new generation live side by side while a node rolls
GARBAGE_EVERY: Final = 100_000  #: container objects made and not freed before the dispatcher looks for cycles among them


def run(settings: WorkerSettings) -> int:
    """Be a node until told to stop; the exit code. Raises GotaskError for what no restart can mend."""
    owner = new_owner(settings.worker_id)
    life = LifeLine(Path(private_folder(state_folder())) / "nodes", owner)
    try:
        segment = Segment(
            slots=max(SLOTS_LEAST, SLOTS_PER_JOB * settings.concurrency), workers=GENERATIONS * settings.processes
        )
    except MemoryError as error:
        raise NotConfigured(str(error)) from error
    notices = Notices()
    node = Worker(
        name=owner,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid=os.getpid(),
        slots=settings.concurrency,
        processes=settings.processes,
        started_at=from_epoch(now()),
        lock=str(life.path),
    )
    work = partial(dispatch, settings, segment, notices, node)
    return Arbiter(settings, segment, notices, work, joiner(settings.url)).run()


def joiner(url: str) -> Callable[[Any], Any]:
    """For workers: from a connection of a task's own to what the store can do in its transaction.

    The store is opened by the first task that asks, which connects to nothing.
    """
    store = cache(partial(backends.open, url))
    return lambda connection: backends.joined(store(), connection)


def dispatch(settings: WorkerSettings, segment: Segment, notices: Notices, node: Worker) -> None:
    """What the dispatcher's process does, from its fork to its end."""
    from gotask.node.probe import Probe  # it needs numpy, which starts threads: the arbiter, who forks, must not have it

    store = backends.open(settings.url)
    line, outlook = Line(store), Outlook(store)
    catalog = Catalog(line.backend, notices, settings.queues)
    registry = Registry(line.backend, node)
    settler = Settler(line.backend, beside=not is_embedded(settings.url))
    times = (settings.lease, settings.shutdown_timeout)
    dispatcher = Dispatcher(line, segment, catalog, registry, settler, node.name, node.slots, *times)
    take_signals({signal.SIGTERM: dispatcher.drain})
    probe = Probe(dispatcher, segment, catalog, settings.lease)
    if settings.health_port:
        probe.serve(settings.health_addr, settings.health_port)
    outlook.start()
    say_ready()
    # Batches die by reference count; a collector that looks through each of them costs a tenth of the drain rate.
    gc.freeze()
    gc.set_threshold(GARBAGE_EVERY)
    dispatcher.run(settings.burst)
    outlook.stop()
    probe.close()
    line.backend.close()
