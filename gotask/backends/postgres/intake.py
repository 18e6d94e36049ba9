"""Accepting jobs: which are new, which stand already."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from gotask.backends import ids
from gotask.backends.fields import born, stands
from gotask.backends.postgres import rows
from gotask.backends.postgres.server import Rows
from gotask.errors import BackendDown
from gotask.model import Enqueued, Job, NewJob
from gotask.states import State

ROUNDS: Final = 20  #: times that what stood in the way of a job may be gone again before its answer is found


class Intake:
    """One batch on its way in. Of one id or unique key, within the batch as between batches, the first stands."""

    def __init__(self, call: Callable[..., Rows], jobs: Sequence[NewJob], at: datetime | None) -> None:
        self._call, self._jobs, self._at = call, jobs, at
        made = iter(ids.make(sum(not new.id for new in jobs)))
        self._names = [new.id or next(made) for new in jobs]
        self._answers: list[Enqueued | None] = [None] * len(jobs)
        self._stand: dict[str, Job] = {}
        self._holders: dict[str, Job] = {}
        self.queues: set[str] = set()  #: to which something came

    def answers(self) -> list[Enqueued]:
        todo = list(range(len(self._jobs)))
        for _ in range(ROUNDS):
            todo = self._round(todo)
            if not todo:
                return [answer for answer in self._answers if answer is not None]
        raise BackendDown(f"The id or unique key of {self._names[todo[0]]!r} is being fought over; try again with the same id.")

    def _round(self, todo: list[int]) -> list[int]:
        """Store the first of each id and key, and find out what stands in the way of others; those without an answer yet."""
        asked, taken, keys, rest = [], set[str](), set[str](), []
        for at in todo:
            name, key = self._names[at], self._jobs[at].unique_key
            if self._answered(at):
                continue
            if name in taken or (key is not None and key in keys):
                rest.append(at)
                continue
            taken.add(name)
            if key is not None:
                keys.add(key)
            asked.append(at)
        if not asked:
            return rest
        missed = self._store(asked)
        if missed:
            self._look_up(missed)
        return sorted(rest + missed)

    def _answered(self, at: int) -> bool:
        new = self._jobs[at]
        known = self._stand.get(self._names[at])
        if known is not None:
            self._answers[at] = stands(new, known)
        elif new.unique_key is not None and new.unique_key in self._holders:
            self._answers[at] = Enqueued("duplicate", self._holders[new.unique_key])
        return self._answers[at] is not None

    def _store(self, asked: list[int]) -> list[int]:
        """Those of the jobs that were not new."""
        jobs = [self._jobs[at] for at in asked]
        names = [self._names[at] for at in asked]
        found = self._call(
            "enqueue",
            rows.texts(names),
            rows.texts([new.type for new in jobs]),
            rows.texts([new.queue for new in jobs]),
            rows.shorts([new.priority for new in jobs]),
            rows.blobs([new.payload for new in jobs]),
            rows.any_of(rows.floats, [new.delay for new in jobs]),
            rows.any_of(rows.moments, [new.scheduled_at for new in jobs]),
            rows.any_of(rows.moments, [new.expires_at for new in jobs]),
            rows.any_of(rows.texts, [rows.escaped(new.unique_key) for new in jobs]),
            rows.any_of(rows.texts, [rows.more_of(new) for new in jobs]),
            rows.texts([new.id for new in jobs if new.id]),
            self._at,
        )
        created = {row[0]: row for row in found}
        missed = []
        for at, name, new in zip(asked, names, jobs, strict=True):
            row = created.get(name)
            if row is None:
                missed.append(at)
                continue
            job = born(new, name, State(row[1]), row[2], row[3])
            self._answers[at] = Enqueued("created", job)
            self._stand[name] = job
            if new.unique_key is not None:
                self._holders[new.unique_key] = job
            self.queues.add(new.queue)
        return missed

    def _look_up(self, missed: list[int]) -> None:
        names = rows.texts([self._names[at] for at in missed])
        keys = rows.texts([rows.escaped(key) for at in missed if (key := self._jobs[at].unique_key) is not None])
        wanted = {self._names[at] for at in missed}
        for row in self._call("standing", names, keys):
            job = rows.read_job(row)
            if job.id in wanted:
                self._stand[job.id] = job
            if job.unique_key is not None and job.completed_at is None:
                self._holders[job.unique_key] = job
