"""One process of the race in test_races.py: `racer.py OPENER URL OWNER TOTAL`.

Leases and ends jobs until all have ended, then prints one line for each of its starts: id, lease number, "ack" if its ack held.
"""

import random
import sys
from time import monotonic

from lab import opener

from gotask.model import Settlement
from gotask.states import FINISHED, Event


def run(opener_path: str, url: str, owner: str, total: int, seconds: float = 40.0) -> list[tuple[str, int, str]]:
    """Race on one connection of one's own."""
    store = opener(opener_path)(url)
    dice = random.Random(owner)
    starts: list[tuple[str, int, str]] = []
    deadline = monotonic() + seconds
    try:
        while sum(n for (_, state), n in store.counts().items() if state in FINISHED) < total:
            assert monotonic() < deadline, f"the race is not over after {seconds:g} s: {store.counts()}"
            jobs = store.lease({"default": dice.randint(1, 20)}, owner, 60.0)
            ends = [dice.choices((Event.ACK, Event.RELEASE, Event.RETRY), (8, 1, 1))[0] for _ in jobs]
            asked = [
                Settlement(job.id, job.lease, end, 0.0 if end is Event.RETRY else None)
                for job, end in zip(jobs, ends, strict=True)
            ]
            held = store.settle_many(asked)
            starts += [
                (job.id, job.lease, "ack" if ok and end is Event.ACK else "" if ok else "lost")
                for job, end, ok in zip(jobs, ends, held, strict=True)
            ]
            store.tick()
    finally:
        store.close()
    return starts


if __name__ == "__main__":
    for id, lease, how in run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])):
        print(id, lease, how)
