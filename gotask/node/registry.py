"""Nodes in the store's Worker records, and the proof that one is gone.

All processes of a node inherit one locked file. While any of them lives, the lock cannot be had; so a node that starts on
the same machine knows for certain which of its predecessors left jobs behind, and gives those back at once instead of
waiting for their leases to lapse.
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
from gotask.states import Event, State

FORGET_S: Final = 86_400.0  #: seconds; a node unseen for so long has lost its jobs to others, or to their lapse
PAGE: Final = 500  #: jobs given back in one call
log = logging.getLogger("gotask.node")


def new_owner(worker_id: str | None) -> str:
    """A name for one life of one node. The random part keeps two lives of one name apart, or two hosts of one name."""
    return f"{worker_id or socket.gethostname()}-{os.urandom(4).hex()}"


class LifeLine:
    """The locked file of one node; made before the first fork, held by all its processes."""

    def __init__(self, folder: Path, owner: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"{owner}.lock"
        self._fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Registry:
    def __init__(self, backend: Backend, worker: Worker) -> None:
        self._backend = backend
        self._worker = worker

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

    def give_back_orphans(self) -> int:
        """Release the running jobs of nodes of this machine whose processes are all dead; how many there were."""
        count = 0
        for worker in self._backend.all(Worker):
            if worker.name == self._worker.name:
                continue
            if worker.seen_at is not None and now() - worker.seen_at.timestamp() > FORGET_S:
                self._backend.drop(Worker, worker.name)
            elif self._is_gone(worker):
                count += self.release(worker.name, "its node is gone")
                self._backend.drop(Worker, worker.name)
                Path(worker.lock).unlink(missing_ok=True)
        return count

    def _is_gone(self, worker: Worker) -> bool:
        """True only on proof. A file that is not here may belong to another container, whose lease must lapse."""
        if worker.boot_id != self._worker.boot_id or not worker.lock:
            return False
        try:
            fd = os.open(worker.lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def release(self, owner: str, reason: str, keep: Collection[str] = ()) -> int:
        """Give back the running jobs of `owner`, who is known to be dead, but for the ids in `keep`; how many there were."""
        count, cursor = 0, None
        while True:
            page = self._backend.find(Filter(status=State.RUNNING, worker_id=owner, limit=PAGE, cursor=cursor))
            strays = [job for job in page.jobs if job.id not in keep]
            held = self._backend.settle_many([Settlement(job.id, job.lease, Event.RELEASE, reason=reason) for job in strays])
            count += sum(held)
            cursor = page.next_cursor
            if cursor is None:
                break
        if count:
            log.info("Gave back %d jobs of %s: %s.", count, owner, reason)
        return count
