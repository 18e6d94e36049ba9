"""Whether anybody is there to run a job: what a person who waits in vain has to know."""

from typing import TYPE_CHECKING, Final

from gotask import clock
from gotask.errors import GotaskError
from gotask.model import Job, Worker
from gotask.states import State

if TYPE_CHECKING:
    from gotask.service import Service

SEEN_S: Final = 300.0  #: seconds a node may be silent before it counts as gone; it reports each third of its lease
WAITING: Final = (State.SCHEDULED, State.PENDING, State.RETRYING)


def nodes(service: "Service") -> list[Worker] | None:
    """The nodes that are up; None if that cannot be learned, as with a key that may only enqueue."""
    try:
        found = service.list_workers().workers
    except GotaskError:
        return None
    now = clock.now()
    return [one for one in found if one.seen_at is not None and now - clock.to_epoch(one.seen_at) < SEEN_S]


def trouble(job: Job, found: list[Worker] | None) -> str:
    """Why nobody will start this job as things are, as a sentence; empty if somebody will, or it has been started."""
    if found is None or job.status not in WAITING:
        return ""
    if not found:
        return "No worker is running: start one with `gotask up` or `gotask worker`."
    serving = [one for one in found if job.queue in one.queues]
    if not serving:
        return f"No worker serves queue {job.queue!r}: start one with -Q {job.queue}."
    # a node says which types it knows once its app is loaded
    if all(one.types and job.type not in one.types for one in serving):
        return f"No worker of queue {job.queue!r} knows the type {job.type!r}: start one whose app has that task."
    return ""
