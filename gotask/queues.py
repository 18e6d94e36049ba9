"""The operations on queues. A queue is its settings, a record; the jobs that bear its name do not need it."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta
from msgspec.structs import asdict, replace

from gotask.backends import Backend
from gotask.calls import Message, Purged, QueueChange, QueueList, call, decode
from gotask.errors import Conflict, InvalidInput, NotFound
from gotask.model import Filter, Queue, QueueStats
from gotask.states import LIVE, State

QueueName = Annotated[str, Meta(description="The queue's name.")]

DEFAULT_QUEUE: Final = "default"  #: exists without being made: it is where jobs go that name no queue
TRIES: Final = 5  #: times a settings change is tried when others change the same queue
WAITING: Final = tuple(state for state in LIVE if state is not State.RUNNING)


class Queues:
    """The part of the service that looks after queues."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @call("POST", "/api/v1/queues", "operate", status=201)
    def create_queue(self, queue: Queue) -> Queue:
        """Make a queue with settings of its own. Jobs do not need it: a queue that nobody made has the defaults."""
        queue = _fit(replace(_sound(queue), version=0))
        if not self.backend.put(queue, 0):
            raise Conflict(f"There is a queue {queue.name!r} already; change it with PUT /api/v1/queues/{queue.name}.")
        return self.get_queue(queue.name)

    @call("GET", "/api/v1/queues", "read")
    def list_queues(self) -> QueueList:
        """List all queues with their settings."""
        found = {name: Queue(name=name) for name in {DEFAULT_QUEUE, *(name for name, _ in self.backend.counts())}}
        found |= {queue.name: queue for queue in self.backend.all(Queue)}
        return QueueList([found[name] for name in sorted(found)], len(found))

    @call("GET", "/api/v1/queues/{name}", "read")
    def get_queue(self, name: QueueName) -> Queue:
        """Get a queue's settings."""
        queue = self.backend.get(Queue, name)
        if queue is not None:
            return queue
        if name != DEFAULT_QUEUE and not self._count(name):
            raise NotFound(f"There is no queue {name!r}: nobody made it, and no job is in it.")
        return Queue(name=name)

    @call("PUT", "/api/v1/queues/{name}", "operate")
    def update_queue(self, name: QueueName, change: QueueChange) -> Queue:
        """Change a queue's settings; what is left out stays. With `version`, only if it is still the stored one."""
        wanted = {key: value for key, value in asdict(_sound(change)).items() if value is not UNSET}
        version = wanted.pop("version", None)
        if wanted.pop("name", name) != name:
            raise InvalidInput(f"name: the queue at this address is {name!r}, and a queue cannot be renamed.")
        return self._change(name, version, **wanted)

    @call("POST", "/api/v1/queues/{name}/pause", "operate")
    def pause_queue(self, name: QueueName) -> Message:
        """Start no more jobs of a queue until it is resumed, also of one that has had none yet. Those that run go on."""
        self._change(name, made=True, paused=True)
        return Message(f"Queue {name} is paused.")

    @call("POST", "/api/v1/queues/{name}/resume", "operate")
    def resume_queue(self, name: QueueName) -> Message:
        """Start a paused queue's jobs again."""
        self._change(name, made=True, paused=False)
        return Message(f"Queue {name} is resumed.")

    def _change(self, name: str, version: int | None = None, made: bool = False, **wanted: Any) -> Queue:
        """Put what is wanted into a queue's record; one that nobody made is an error, unless `made` here."""
        for _ in range(TRIES):
            queue = (self.backend.get(Queue, name) or _sound(Queue(name=name))) if made else self.get_queue(name)
            if version is not None and version != queue.version:
                raise Conflict(f"Queue {name} is at version {queue.version}, not {version}: get it, and change that.")
            if self.backend.put(_fit(replace(queue, **wanted)), queue.version):
                return self.get_queue(name)
        raise Conflict(f"Queue {name} is being changed by others; try again.")

    @call("DELETE", "/api/v1/queues/{name}", "admin")
    def delete_queue(self, name: QueueName) -> Message:
        """Delete a queue's settings, if none of its jobs is unfinished. Finished ones stay until they are forgotten."""
        queue = self.get_queue(name)
        if unfinished := sum(number for state, number in self._count(name).items() if state in LIVE):
            raise Conflict(f"Queue {name} has {unfinished} unfinished jobs: wait for them, or purge the queue first.")
        if queue.version and not self.backend.drop(Queue, name, queue.version):
            raise Conflict(f"Queue {name} is being changed by others; try again.")
        return Message(f"Queue {name} is deleted.")

    @call("GET", "/api/v1/queues/{name}/stats", "read")
    def queue_stats(self, name: QueueName) -> QueueStats:
        """Count a queue's jobs by state."""
        queue = self.get_queue(name)
        counts = {f"{state.lower()}_count": number for state, number in self._count(name).items()}
        return QueueStats(name, paused=queue.paused, **counts)

    def _count(self, name: str) -> dict[State, int]:
        return {state: number for (queue, state), number in self.backend.counts().items() if queue == name}

    @call("POST", "/api/v1/queues/{name}/purge", "admin")
    def purge_queue(self, name: QueueName) -> Purged:
        """Delete all jobs of a queue that wait to run."""
        deleted = 0
        for state in WAITING:
            page = self.backend.find(Filter(queue=name, status=state, limit=500))
            while page.jobs:
                deleted += sum(self.backend.drop_many([job.id for job in page.jobs]))
                if page.next_cursor is None:
                    break
                page = self.backend.find(Filter(queue=name, status=state, limit=500, cursor=page.next_cursor))
        return Purged(f"{deleted} jobs of queue {name} are deleted.", deleted)


def _sound(record: Any) -> Any:
    """A record from Python code, held to the same bounds as one that came as JSON."""
    return decode(type(record), msgspec.json.encode(record))


def _fit(queue: Queue) -> Queue:
    """A queue's settings, looked at together. Raises InvalidInput."""
    if queue.dead_letter_queue == queue.name:
        raise InvalidInput(f"dead_letter_queue: {queue.name!r} is the queue itself; name another one.")
    return queue
