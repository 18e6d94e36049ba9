"""Decisions are pure, so they are tested as tables: no store, no clock, no mock."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gotask import policy
from gotask.model import CRASHES_MAX, DEFAULT_RULES, Job, Queue, Rules, Strategy
from gotask.policy import Outcome
from gotask.states import DEAD_LETTER_KEEP_S, Event

RULES = policy.resolve(Rules(max_retries=2, retry_delay=10.0, max_retry_delay=60.0))


def decide(outcome: Outcome, job: Job | None = None, dead_letters: str | None = None, chance: float = 0.5):
    return policy.decide(job or Job(id="a", type="t", lease=7), outcome, RULES, dead_letters, chance)


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        (Strategy.FIXED, [10, 10, 10, 10]),
        (Strategy.LINEAR, [10, 20, 30, 40]),
        (Strategy.EXPONENTIAL, [10, 20, 40, 60]),
    ],
)
def test_each_strategy_grows_in_its_way_and_stops_at_the_cap(strategy: Strategy, delays: list[float]) -> None:
    rules = policy.resolve(Rules(retry_strategy=strategy, retry_delay=10, max_retry_delay=60))
    assert [policy.backoff(rules, count, 0.5) for count in range(4)] == delays


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True), st.sampled_from(Strategy))
def test_backoff_stays_within_its_cap_however_often_a_job_failed(count: int, chance: float, strategy: Strategy) -> None:
    rules = policy.resolve(Rules(retry_strategy=strategy, retry_delay=5, max_retry_delay=3600, retry_jitter=True))
    assert 0 <= policy.backoff(rules, count, chance) <= 3600


def test_full_jitter_spreads_the_delay_from_zero_to_its_whole_length() -> None:
    rules = policy.resolve(Rules(retry_strategy=Strategy.FIXED, retry_delay=10, retry_jitter=True))
    assert [policy.backoff(rules, 0, chance) for chance in (0.0, 0.25, 0.999)] == [0.0, 2.5, 9.99]


def test_the_job_speaks_before_the_task_and_the_task_before_the_queue() -> None:
    # Given rules of a job, its task and its queue that each say something else
    job, task = Job(type="t", max_retries=0), Rules(max_retries=1, timeout=20.0)
    queue = Queue(name="q", max_retries=2, timeout=30.0, retry_delay=40.0)
    # When they are resolved
    rules = policy.resolve(job, task, queue)
    # Then the first that says something wins, field by field, also when it says 0
    assert (rules.max_retries, rules.timeout, rules.retry_delay) == (0, 20.0, 40.0)
    assert rules.max_retry_delay == DEFAULT_RULES.max_retry_delay


def test_a_failure_is_retried_until_its_retries_are_spent() -> None:
    events = [decide(Outcome("failed", "boom"), Job(id="a", type="t", retry_count=count)).event for count in range(4)]
    assert events == [Event.RETRY, Event.RETRY, Event.BURY, Event.BURY]


def test_what_may_not_be_retried_is_buried_at_once_with_its_error() -> None:
    settlement = decide(Outcome("failed", "boom", retryable=False))
    assert (settlement.event, settlement.error, settlement.reason) == (Event.BURY, "boom", "failed")


def test_a_task_that_names_its_delay_gets_it() -> None:
    assert decide(Outcome("retry", "busy", seconds=123.0)).due_in == 123.0


def test_a_payload_that_does_not_fit_is_never_retried() -> None:
    assert decide(Outcome("misfit", "no")).event is Event.BURY


def test_release_and_snooze_burn_nothing() -> None:
    assert decide(Outcome("released")).event is Event.RELEASE
    snoozed = decide(Outcome("snooze", seconds=9.0))
    assert (snoozed.event, snoozed.due_in, snoozed.crashed) == (Event.SNOOZE, 9.0, False)


@pytest.mark.parametrize("alone", [True, False])
def test_a_job_is_poison_at_its_last_crash_and_only_if_it_was_alone(alone: bool) -> None:
    # Given a job that has crashed all but once of what it may
    job = Job(id="a", type="t", crashes=CRASHES_MAX - 1)
    # When its worker dies once more
    settlement = decide(Outcome("crashed", "killed", alone=alone), job)
    # Then it is buried if nothing else can be to blame, and else tried alone
    assert settlement.crashed
    assert (settlement.event, settlement.reason) == ((Event.BURY, "poison") if alone else (Event.RELEASE, "crashed"))


def test_a_buried_job_moves_to_the_dead_letter_queue_and_is_kept_longer() -> None:
    settlement = decide(Outcome("failed", "boom", retryable=False), dead_letters="dead")
    assert (settlement.queue, settlement.due_in) == ("dead", DEAD_LETTER_KEEP_S)


def test_an_unknown_type_is_looked_for_ever_less_often() -> None:
    # Given a job first met after 0, 1, 60 and 100,000 seconds
    made = datetime(2026, 1, 1, tzinfo=UTC)
    ages = [0, 1, 60, 100_000]
    jobs = [Job(id="a", type="t", created_at=made, started_at=made + timedelta(seconds=age)) for age in ages]
    # When no worker knows its type
    settlements = [decide(Outcome("unknown", "no such task"), job) for job in jobs]
    # Then it is snoozed, never failed, and the delays grow up to a bound
    assert [one.event for one in settlements] == [Event.SNOOZE] * 4
    assert [one.due_in for one in settlements] == [0.25, 0.5, 30.0, 300.0]


def test_queues_are_served_by_priority_the_highest_first() -> None:
    low, high, other = Queue(name="low", priority=0), Queue(name="high", priority=2), Queue(name="other", priority=2)
    assert [[queue.name for queue in tier] for tier in policy.tiers([low, high, other])] == [["high", "other"], ["low"]]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 500), st.integers(0, 1000))
def test_shares_hand_out_every_place_and_never_more(weights: list[int], free: int, turn: int) -> None:
    queues = [Queue(name=str(index), weight=weight) for index, weight in enumerate(weights)]
    wants = policy.shares(queues, free, turn)
    assert sum(wants.values()) == free
    for queue in queues:
        assert abs(wants.get(queue.name, 0) - free * queue.weight / sum(weights)) <= len(queues)


def test_weights_hold_in_the_long_run_also_for_one_place_at_a_time() -> None:
    queues = [Queue(name="a", weight=3), Queue(name="b", weight=1)]
    given_to = [next(iter(policy.shares(queues, 1, turn))) for turn in range(400)]
    assert given_to.count("a") == 300


def test_a_node_leases_one_job_a_slot_when_jobs_are_long_and_many_when_they_are_short() -> None:
    long = policy.wanted(slots=4, in_flight=0, run_s=10.0, trip_s=0.01, most=4096)
    short = policy.wanted(slots=4, in_flight=0, run_s=0.000_005, trip_s=0.01, most=4096)
    assert long == 4
    assert short == policy.LEASE_MOST


@given(st.integers(1, 1000), st.integers(0, 5000), st.floats(0, 100), st.floats(0, 1), st.integers(1, 4096))
def test_a_node_never_has_more_in_hand_than_its_segment_holds(
    slots: int, in_flight: int, run_s: float, trip_s: float, most: int
) -> None:
    more = policy.wanted(slots, in_flight, run_s, trip_s, most)
    assert 0 <= more <= policy.LEASE_MOST
    assert more == 0 or in_flight + more <= most
