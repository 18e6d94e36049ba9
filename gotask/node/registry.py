"""Nodes in the store's Worker records, and the proof that one is gone.

All processes of a node inherit one locked file. While any of them lives, the lock cannot be had; so another node of the same
machine, which finds the file beside its own, knows for certain that its jobs are in nobody's hands, and gives those back at
once instead of waiting for their leases to lapse. The store is asked only about a node that is proved dead.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from gotask.backends import Backend
from gotask.clock import from_epoch, now
from gotask.model import Filter, Settlement, Worker
from gotask.node.heldup import HeldUp
from gotask.node.settler import settling
from gotask.states import Event, State

FORGET_S: Final = 86_400.0  #: seconds; a node unseen for so long has lost its jobs to others, or to their lapse
PAGE: Final = 500  #: jobs given back in one call
LOCK: Final = ".lock"  #: how the name of a locked file ends, after its node's
log = logging.getLogger("gotask.node")


def new_owner(worker_id: str | None) -> str:
    """A name for one life of one node. The random part keeps two lives of one name apart, or two hosts of one name."""
    return f"{worker_id or socket.gethostname()}-{os.urandom(4).hex()}"


class LifeLine:
    """The locked file of one node; made before the first fork, held by all its processes."""

    def __init__(self, folder: Path, owner: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder.resolve() / f"{owner}{LOCK}"
        unborn = self.path.with_name(f"{owner}.unborn")  # nobody tries the lock before it is held
        self._fd = os.open(unborn, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unborn.rename(self.path)


class Registry:
    def __init__(self, backend: Backend, worker: Worker) -> None:
        self._backend = backend
        self._worker = worker
        self._strangers: set[str] = set()  # names of dead nodes here that are none of this store's

    def introduce(self) -> None:
        """Say in the log who this is, and what its store promises. Raises BackendDown."""
        node = self._worker
        log.info("Node %s: %d slots in %d processes. %s", node.name, node.slots, node.processes, self._backend.promise)

    def announce(self, queues: list[str], types: list[str]) -> None:
        """Say that this node is there, and what it takes."""
        self._worker.queues, self._worker.types = queues, types
        self._worker.seen_at = from_epoch(now())
        self._backend.put(self._worker)

    def leave(self) -> None:
        """The node has ended well: it is no longer listed, and nobody needs a proof of its end."""
        self._backend.drop(Worker, self._worker.name)
        if self._worker.lock:
            Path(self._worker.lock).unlink(missing_ok=True)

    def give_back_orphans(self, held_up: HeldUp) -> int:
        """Release the running jobs of this store's nodes on this machine whose processes are all dead; how many there were.

        Costs the store nothing while nobody has died, however many nodes it has.
        """
        if not self._worker.lock:
            return 0
        count, own = 0, Path(self._worker.lock)
        for path in sorted(own.parent.glob(f"*{LOCK}")):
            name = path.name.removesuffix(LOCK)
            if path == own or name in self._strangers or not can_be_had(path):
                continue
            worker = self._backend.get(Worker, name)
            if worker is None or worker.boot_id != self._worker.boot_id or worker.lock != str(path):
                self._strangers.add(name)  # of another store, perhaps, whose nodes need the file as a proof
                continue
            count += self.release(name, "its node is gone", held_up)
            self._backend.drop(Worker, name)
            path.unlink(missing_ok=True)
        return count

    def forget_unseen(self) -> None:
        """Drop the records of nodes, of any machine, that have not been seen for FORGET_S. Reads all records."""
        for worker in self._backend.all(Worker):
            if worker.seen_at is not None and now() - worker.seen_at.timestamp() > FORGET_S:
                self._backend.drop(Worker, worker.name)

    def release(self, owner: str, reason: str, held_up: HeldUp, keep: Collection[tuple[str, int]] = ()) -> int:
        """Give back the running jobs of `owner` that nobody has in hand, all but the (id, lease) in `keep`; how many.

        Those that another transaction has locked go to `held_up`.
        """
        count, cursor = 0, None
        while True:
            page = self._backend.find(Filter(status=State.RUNNING, worker_id=owner, limit=PAGE, cursor=cursor))
            strays = [job for job in page.jobs if (job.id, job.lease) not in keep]
            endings = [Settlement(job.id, job.lease, Event.RELEASE, reason=reason) for job in strays]
            answers = settling(self._backend)(endings)
            held_up.keep(endings, answers)
            count += sum(held is True for held in answers)
            cursor = page.next_cursor
            if cursor is None:
                break
        if count:
            log.info("Gave back %d jobs of %s: %s.", count, owner, reason)
        return count


def can_be_had(path: Path) -> bool:
    """Whether nobody holds the lock of a file: all processes that inherited it are dead."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
