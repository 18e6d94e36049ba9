"""Limits of queues in a store with several shards: decided at the shard of the queue, before jobs are leased from any.

A permit allows one job of a queue to run. It is reserved, given to the job that was leased, extended with its lease, and
handed back when that ends; one that nobody extends lapses like a lease.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from gotask.backends.redis.rows import micros_of
from gotask.backends.redis.shards import Shards
from gotask.clock import monotonic
from gotask.model import Job, Queue

FRESH_S: Final = 1.0  #: seconds that it is remembered which queues have limits

Reserved = dict[str, tuple[str, int]]  #: queue -> token, and for how many jobs it is good
Run = Callable[..., Any]  #: root, verb, arguments -> answer


class Permits:
    def __init__(self, shards: Shards, run: Run, records: Callable[[], list[Queue]]) -> None:
        self._shards = shards
        self._run = run
        self._records = records
        self._owed: list[tuple[str, str, int]] = []  # queue, token, n of reservations neither given to jobs nor back
        self._limited: frozenset[str] = frozenset()
        self._read_at = float("-inf")

    def needed(self, queue: str) -> bool:
        if monotonic() - self._read_at > FRESH_S:
            self._limited = frozenset(one.name for one in self._records() if one.max_workers or one.rate_limit)
            self._read_at = monotonic()
        return queue in self._limited

    @contextmanager
    def reserved(self, wants: Mapping[str, int], lease_s: float) -> Iterator[Reserved]:
        """Reservations for those of the queues that have limits. What is left of them at the end goes back: at once, or, if
        the store does not answer, before the next.
        """
        self._pay(lease_s)
        made: Reserved = {}
        try:
            for queue, want in wants.items():
                if self.needed(queue):
                    token = os.urandom(8).hex()
                    made[queue] = (token, want)  # until it is known how many, as many as it may have been
                    arguments = (queue, token, want, micros_of(lease_s))
                    made[queue] = (token, int(self._run(self._shards.of(queue), "permit", *arguments)))
            yield made
        finally:
            self._owed += [(queue, *one) for queue, one in made.items()]

    def _pay(self, lease_s: float) -> None:
        """Give back what could not be given back before."""
        while self._owed:
            try:
                queue, token, n = one = self._owed.pop()
            except IndexError:  # another thread was quicker
                return
            try:
                self.give(queue, token, n, [], lease_s)
            except BaseException:
                self._owed.append(one)
                raise

    def give(self, queue: str, token: str, reserved: int, jobs: Sequence[Job], lease_s: float) -> None:
        """Turn a reservation into the permits of the jobs that were leased; what is left over goes back."""
        ids = [job.id for job in jobs]
        self._run(self._shards.of(queue), "permitted", queue, token, reserved, micros_of(lease_s), *ids)

    def extend(self, held: Mapping[str, Sequence[str]], lease_s: float) -> None:
        """Extend the permits of jobs, given as queue -> ids."""
        for queue, ids in held.items():
            self._run(self._shards.of(queue), "permitted", queue, "", 0, micros_of(lease_s), *ids)

    def hand_back(self, ended: Mapping[str, Sequence[str]]) -> None:
        """The jobs, given as queue -> ids, run no more."""
        for queue, ids in ended.items():
            self._run(self._shards.of(queue), "unpermit", queue, *ids)
