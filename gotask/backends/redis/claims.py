"""Unique keys of a store with several shards: decided at the shard of the key, before the job goes to the shard of its id.

A claim names the job that holds a key. It is believed only while that job lives, so none has to be given back in the same
step as the job ends; `sweep` forgets those of jobs that have.
"""

import random
import time
from collections.abc import Callable
from typing import Any, Final

from gotask.backends.redis.shards import Shards
from gotask.clock import monotonic
from gotask.errors import BackendDown
from gotask.model import Job
from gotask.states import LIVE

SWEPT: Final = 1000  #: claims forgotten in one go

Run = Callable[..., Any]  #: root, verb, arguments -> answer


class Claims:
    def __init__(self, shards: Shards, run: Run, get: Callable[[str], Job | None], under_way_s: float) -> None:
        """`under_way_s` seconds are given to a producer between its claim and its job, before the claim is taken over."""
        self._shards = shards
        self._run = run
        self._get = get
        self._under_way_s = under_way_s

    def claim(self, key: str, id: str) -> Job | None:
        """Make the job `id`, about to be enqueued, the holder of `key`; or the live job that holds it."""
        root = self._shards.of(key)
        expected: bytes | str = ""
        deadline = monotonic() + self._under_way_s
        while True:
            holder = self._run(root, "claim", key, id, expected)
            if holder == id.encode():
                return None
            job = self._get(holder.decode())
            if job is not None and job.status in LIVE and job.unique_key == key:
                return job
            if job is None and monotonic() < deadline:
                time.sleep(random.uniform(0.01, 0.05))
                continue
            if monotonic() > deadline + self._under_way_s:
                raise BackendDown(f"The unique key {key!r} is being fought over; try again with the same id.")
            expected = holder

    def sweep(self) -> None:
        """Forget the claims of jobs that have ended, and have not begun anew."""
        for root in self._shards.roots:
            flat = self._run(root, "freed", SWEPT)
            if not flat:
                continue
            ended: dict[str, list[bytes]] = {}
            for at in range(0, len(flat), 2):
                key, job = flat[at], self._get(flat[at + 1].decode())
                if job is None or job.status not in LIVE:
                    ended.setdefault(self._shards.of(key.decode()), []).extend(flat[at : at + 2])
            for home, pairs in ended.items():
                self._run(home, "unclaim", *pairs)
            self._run(root, "swept", len(flat) // 2, flat[0], flat[1])
