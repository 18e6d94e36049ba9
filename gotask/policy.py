"""Decisions, pure: no clock, no die and no store in here. Whoever calls hands in what time and chance had to say."""

from collections.abc import Sequence
from math import isnan
from typing import Final, Literal

from msgspec import Struct

from gotask.model import CRASHES_MAX, DEFAULT_RULES, ERROR_MAX, SECONDS_MAX, Job, Queue, Rules, Settlement, Strategy
from gotask.states import DEAD_LETTER_KEEP_S, RULES, Event

UNKNOWN_FIRST_S: Final = 0.25  #: seconds until a job of a type that is not known here is offered again: another node may be
UNKNOWN_MOST_S: Final = 300.0  #: seconds; a deploy that brings the type is noticed within this
AGEING: Final = 16  #: one in so many jobs leased from a queue is its oldest, whatever its priority
LEASE_MOST: Final = 1000  #: jobs in one lease: a larger batch holds the store's writer longer than a producer likes
RELEASE_AFTER_S: Final = 1.0  #: seconds a leased job may wait unstarted behind busy workers

READY: Final = RULES[Event.LEASE].sources[0]  #: the state of a job that only waits for a node to take it

Verdict = Literal["done", "failed", "timeout", "retry", "snooze", "cancelled", "released", "crashed", "unknown", "misfit"]


class Outcome(Struct, array_like=True):
    """What became of one run. Workers send all but the plainest as a report, so the order of fields is a format."""

    verdict: Verdict
    error: str | None = None
    seconds: float | None = None  # when the task itself named a delay
    retryable: bool = True
    alone: bool = False  # crashed: nothing else ran in that worker
    result: bytes | None = None


def resolve(*rules: Rules | None) -> Rules:
    """The rules in force: for each field the first of `rules` (job, task, queue) that says something, else the default."""
    chain = [one for one in rules if one is not None] + [DEFAULT_RULES]
    found = {
        field: next(value for one in chain if (value := getattr(one, field)) is not None) for field in Rules.__struct_fields__
    }
    return Rules(**found)


def backoff(rules: Rules, retry_count: int, chance: float) -> float:
    """Seconds to wait before the attempt after `retry_count` failed ones (0: the first has just failed).

    `chance` in [0, 1) spreads the delay over its whole length when jitter is on (full jitter, Brooker, AWS 2015).
    """
    delay = rules.retry_delay or 0.0
    most = rules.max_retry_delay or 0.0
    if rules.retry_strategy is Strategy.LINEAR:
        delay *= retry_count + 1
    elif rules.retry_strategy is Strategy.EXPONENTIAL:
        delay *= 2.0 ** min(retry_count, 64)
    delay = min(delay, most)
    return delay * chance if rules.retry_jitter else delay


def decide(job: Job, outcome: Outcome, rules: Rules, dead_letters: str | None, chance: float) -> Settlement:
    """How the lease of `job` ends, given what its run came to."""
    error = outcome.error[:ERROR_MAX] if outcome.error else None
    match outcome.verdict:
        case "done":
            return Settlement(job.id, job.lease, Event.ACK, result=outcome.result)
        case "released":
            return Settlement(job.id, job.lease, Event.RELEASE, reason=error)
        case "cancelled":
            return Settlement(job.id, job.lease, Event.CANCEL, reason=error)
        case "snooze":
            return Settlement(job.id, job.lease, Event.SNOOZE, due_in=bounded(outcome.seconds) or 0.0, reason=error)
        case "unknown":
            return Settlement(job.id, job.lease, Event.SNOOZE, due_in=_until_known(job), reason=error)
        case "misfit":
            return _bury(job, error, "misfit", dead_letters)
        case "crashed":
            return _after_crash(job, error, outcome.alone, dead_letters)
    if outcome.retryable and job.retry_count < (rules.max_retries or 0):
        named = bounded(outcome.seconds)
        delay = backoff(rules, job.retry_count, chance) if named is None else named
        return Settlement(job.id, job.lease, Event.RETRY, due_in=delay, error=error, reason=outcome.verdict)
    return _bury(job, error, "timeout" if outcome.verdict == "timeout" else "failed", dead_letters)


def bounded(seconds: float | None) -> float | None:
    """A delay that a task named, within what a store can keep; None for none, or for no number."""
    return None if seconds is None or isnan(seconds) else min(max(seconds, 0.0), SECONDS_MAX)


def _bury(job: Job, error: str | None, reason: str, dead_letters: str | None, crashed: bool = False) -> Settlement:
    keep = DEAD_LETTER_KEEP_S if dead_letters else None
    return Settlement(
        job.id, job.lease, Event.BURY, due_in=keep, error=error, reason=reason, crashed=crashed, queue=dead_letters
    )


def _after_crash(job: Job, error: str | None, alone: bool, dead_letters: str | None) -> Settlement:
    """A job is called poison only if its worker had nothing else in hand; until then a neighbour may be to blame."""
    if alone and job.crashes + 1 >= CRASHES_MAX:
        last = f"{error}; as this was crash {job.crashes + 1} and it ran alone, it is not tried again"
        return _bury(job, last, "poison", dead_letters, crashed=True)
    return Settlement(job.id, job.lease, Event.RELEASE, error=error, reason="crashed", crashed=True)


def _until_known(job: Job) -> float:
    """Half its age: a new type is looked for often at first, then ever less."""
    if job.started_at is None or job.created_at is None:
        return UNKNOWN_FIRST_S
    age = (job.started_at - job.created_at).total_seconds()
    return min(UNKNOWN_MOST_S, max(UNKNOWN_FIRST_S, age / 2))


def tiers(queues: Sequence[Queue]) -> list[list[Queue]]:
    """Queues grouped by their priority, the highest first.

    A paused one is among them: only the store, which judges that within a lease, knows whether it still is.
    """
    levels = sorted({queue.priority for queue in queues}, reverse=True)
    return [[queue for queue in queues if queue.priority == level] for level in levels]


def shares(queues: Sequence[Queue], free: int, turn: int) -> dict[str, int]:
    """How many of `free` places each queue of one priority gets, by weight.

    What does not divide goes round: `turn` counts the places handed out so far, so that a queue of weight 3 beside
    one of weight 1 gets three of every four even when only one place is free at a time.
    """
    total = sum(queue.weight for queue in queues)
    wants = {queue.name: free * queue.weight // total for queue in queues}
    for extra in range(free - sum(wants.values())):
        spot = (turn + extra) % total
        for queue in queues:
            spot -= queue.weight
            if spot < 0:
                wants[queue.name] += 1
                break
    return {name: count for name, count in wants.items() if count}


def wanted(slots: int, in_flight: int, run_s: float, trip_s: float, most: int) -> int:
    """How many more jobs a node should lease now.

    One for each slot, and as many as its slots get through during one round trip to the store: none to speak of for
    jobs of a second, thousands for jobs of microseconds. So nothing sits behind a long job, and no worker starves.
    """
    ahead = slots * trip_s / max(run_s, 1e-7)
    target = min(most, slots + int(min(ahead, most)))
    return max(0, min(target - in_flight, LEASE_MOST))
