"""Unique keys of a store with several shards: decided at the shard of the key, before the job goes to the shard of its id.

A claim names the job that may hold a key, and until when it may be made by that claim: after that, the shard of the job
refuses to. So a claim is over once the job that was made by it has ended, or once its time has passed and no such job lives.
Then another takes it over, or `sweep` forgets it, if it is still the one that was looked into.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from gotask.backends.redis import rows
from gotask.backends.redis.shards import Shards, named
from gotask.clock import monotonic
from gotask.errors import BackendDown
from gotask.model import Enqueued, Job
from gotask.states import LIVE, RULES, Event

SWEPT: Final = 1000  #: claims looked into in one go
MARGIN_S: Final = 1.0  #: seconds that the clocks of two masters may differ
TRIES: Final = 3  #: claims that may come too late, one after the other, before it is the clocks that must be wrong
LATE: Final = "0"  #: a claim that is over: with it, a job that has a unique key is neither made nor revived
TOO_LATE: Final = 2  #: what `move` answers to that

Run = Callable[..., Any]  #: root, verb, arguments -> answer
Act = Callable[..., list[Any]]  #: enqueue or revive one job by a claim ('' if it needs none), of a key -> its answer


class Claims:
    def __init__(self, shards: Shards, run: Run, under_way_s: float) -> None:
        """`under_way_s` seconds are given to a producer between its claim and its job, before the claim is taken over."""
        self._shards = shards
        self._run = run
        self._under_way_s = under_way_s

    def enqueue(self, id: str, key: str | None, enqueue: Act) -> Enqueued:
        """Enqueue the job `id`, by a claim if it has a unique key."""
        done: Any = None
        if key is None or self._job(id) is not None:  # the job that stands is the answer
            (done,) = enqueue("" if key is None else LATE)
        if done is None and key is not None:
            done = self._under(key, id, enqueue, None)
        return Enqueued("duplicate", done) if isinstance(done, Job) else done

    def revive(self, id: str, revive: Act) -> bool:
        """Revive the job `id`, by a claim if it has a unique key."""
        job = self._job(id)
        if job is None or job.unique_key is None or job.status not in RULES[Event.REVIVE].sources:
            return revive(LATE) == [1]
        key = job.unique_key
        return bool(self._under(key, id, lambda claim: revive(claim, key), TOO_LATE) == 1)

    def _under(self, key: str, id: str, act: Act, too_late: int | None) -> Any:
        """What `act` answers by a claim of `key` that was not too late; or the live job that holds it."""
        for _ in range(TRIES):
            claim = self._claim(key, id)
            if isinstance(claim, Job):
                return claim
            (done,) = act(claim)
            if done != too_late:
                return done
        raise BackendDown(
            f"The unique key {key!r} was claimed {TRIES} times, each time too late for its job; compare the clocks of the "
            "masters, and try again with the same id."
        )

    def _claim(self, key: str, id: str) -> Job | str:
        """Claim `key` for the job `id`: until when it may be made, as the script says it; or the live job that has the key."""
        root = self._shards.of(key)
        times = rows.micros_of(self._under_way_s), rows.micros_of(MARGIN_S)
        expected, besides = b"", ""
        deadline = monotonic() + 2 * (self._under_way_s + MARGIN_S)
        while True:
            claim, *left = self._run(root, "claim", key, named(id), *times, expected, besides)
            if not left:
                return str(claim, "ascii")
            name, _, until = claim.partition(b" ")
            holder = name.decode()
            row = self._row(holder)
            job = rows.read(row) if row else None
            has_key = job is not None and job.unique_key == key
            if job is not None and has_key and job.status in LIVE and holder != id:
                return job
            if monotonic() > deadline:
                raise BackendDown(f"The unique key {key!r} is being fought over; try again with the same id.")
            if left == [0] or (job is not None and has_key and job.status not in LIVE and rows.claim_of(row) == until):
                expected = claim
                continue
            self._sweep(self._shards.of(holder))  # the job may have been dropped
            if holder == id:
                besides = "+"  # of an earlier try, or of another who does the same
            else:
                time.sleep(random.uniform(0.01, 0.05))

    def _row(self, id: str) -> rows.Flat:
        (row,) = self._run(self._shards.of(id), "get", named(id))
        return row  # type: ignore[no-any-return]  # an answer of the script

    def _job(self, id: str) -> Job | None:
        row = self._row(id)
        return rows.read(row) if row else None

    def sweep(self) -> bool:
        """Forget the claims of jobs that have ended, or were never made; whether there may be more of them."""
        more = [self._sweep(root) for root in self._shards.roots]
        return any(more)

    def _sweep(self, root: str) -> bool:
        freed, stale = self._run(root, "over", SWEPT, rows.micros_of(MARGIN_S))
        judged: dict[str, list[bytes]] = {}
        for key, claim in _pairs(freed):
            judged.setdefault(self._shards.of(key.decode()), []).extend((key, claim, b""))
        for key, claim, right in self._looked_into(stale):
            judged.setdefault(root, []).extend((key, claim, right))
        for home, triples in judged.items():
            self._run(home, "judged", *triples)
        if freed:
            self._run(root, "swept", len(freed) // 2, *freed[:2])
        return max(len(freed), len(stale)) == 2 * SWEPT

    def _looked_into(self, stale: list[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Unique keys and their claims, each with the claim by which its job holds the key, or empty if it does not."""
        asked: dict[str, list[tuple[bytes, bytes]]] = {}
        for key, claim in _pairs(stale):
            asked.setdefault(self._shards.of(claim.partition(b" ")[0].decode()), []).append((key, claim))
        for home, claims in asked.items():
            holders = (part for key, claim in claims for part in (key, claim.partition(b" ")[0]))
            for (key, claim), right in zip(claims, self._run(home, "holds", *holders), strict=True):
                yield key, claim, right


def _pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
