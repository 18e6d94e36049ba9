"""Frames from put to claim: order, room, recall, what never reaches a worker."""

import math
import os
import threading
import time

import pytest

from gotask._core import ring

from .conftest import frame


def claim(segment: ring.Segment, worker: int, idle: bool = False) -> ring.Claim | None:
    return segment.claim(worker, idle, 0.0)


def claimed_bodies(segment: ring.Segment, worker: int) -> list[bytes]:
    return [got.body for got in iter(lambda: claim(segment, worker), None)]


def test_the_most_urgent_first_then_first_come(segment, worker):
    # Given frames of three priorities, in no order
    segment.put_many([frame(b"1a", 1), frame(b"9a", 9), frame(b"0a", 0), frame(b"1b", 1), frame(b"9b", 9)])
    # Then they are claimed by priority, and within one by age
    assert claimed_bodies(segment, worker) == [b"9a", b"9b", b"1a", b"1b", b"0a"]


def test_a_claim_is_a_ticket_and_a_body_and_happens_once(segment, worker):
    (ticket,) = segment.put_many([frame(b"once")])
    assert claim(segment, worker) == ring.Claim(ticket, b"once")
    assert claim(segment, worker) is None


def test_a_stale_hint_is_passed_over(segment, worker):
    # Given a slot that was recalled and filled again, so that the ring names it twice
    segment.put_many([frame(b"old")])
    segment.recall(0.0)
    segment.put_many([frame(b"new")])
    # Then only its present stay is claimed
    assert claimed_bodies(segment, worker) == [b"new"]


def test_a_recalled_frame_is_nobodys(segment, worker):
    tickets = segment.put_many([frame(b"a"), frame(b"b")])
    got = claim(segment, worker)
    # When the rest is taken back
    assert segment.recall(0.0) == tickets[1:]
    # Then the claimed one stays with its worker and nothing is left
    assert got.ticket == tickets[0]
    assert claim(segment, worker) is None
    assert segment.check() == {"free": 7, "ready": 0, "taken": 1, "lost": 0}


def test_recall_leaves_the_young(segment):
    segment.put_many([frame()])
    assert segment.recall(60.0) == []


def test_recalling_for_ever_does_not_fill_the_ring(segment):
    # Given no worker that would pass over the stale hints
    for _ in range(1000):
        assert len(segment.put_many([frame()] * 8)) == 8
        assert len(segment.recall(0.0)) == 8


def test_full_slots_end_a_batch_early(segment, worker):
    assert len(segment.put_many([frame()] * 9)) == 8
    assert segment.room() == 0
    assert segment.put_many([frame()]) == []
    # When one ends, there is room for one
    got = claim(segment, worker)
    segment.free_many([got.ticket])
    assert len(segment.put_many([frame()] * 2)) == 1


def test_full_blocks_end_a_batch_early(segment, worker):
    large = frame(b"l" * 16384)  # four of eight blocks
    first = segment.put_many([large, large, large])
    assert len(first) == 2
    assert len(segment.put_many([frame(b"small")])) == 1
    # When one large frame ends, its blocks carry the next
    assert claim(segment, worker).body == large.body
    segment.free_many(first[:1])
    assert len(segment.put_many([large])) == 1


def test_a_frame_of_a_mebibyte_comes_out_as_it_went_in():
    segment = ring.Segment(slots=4, workers=1)
    body = os.urandom(1 << 20)
    segment.put_many([frame(body)])
    assert claim(segment, segment.enlist(0)).body == body


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4096, 4097, 32768])
def test_lengths_at_the_edges(segment, worker, length):
    body = os.urandom(length)
    segment.put_many([frame(body)])
    assert claim(segment, worker).body == body


def test_an_expired_frame_is_skipped_and_can_be_recalled(segment, worker):
    # Given one whose lease is over, before one that never ends
    tickets = segment.put_many([ring.Frame(b"late", 1, 0.0, 0.0, 1e-9), frame(b"good")])
    assert claimed_bodies(segment, worker) == [b"good"]
    assert segment.recall(0.0) == tickets[:1]


def test_alone_needs_an_idle_worker_and_blocks_it(segment, worker):
    segment.put_many([frame(b"alone", ring.ALONE), frame(b"other", 9)])
    # Given a worker that holds something: ALONE is not for it
    other = claim(segment, worker, idle=False)
    assert other.body == b"other"
    assert claim(segment, worker, idle=False) is None
    segment.report(worker, other.ticket, 1, b"", True)
    # When it is idle it takes it before all else, and then nothing
    alone = claim(segment, worker, idle=True)
    assert alone.body == b"alone"
    segment.put_many([frame(b"next", 9)])
    assert claim(segment, worker, idle=True) is None
    # Then, once that ended, it goes on
    segment.report(worker, alone.ticket, 1, b"", True)
    assert claim(segment, worker).body == b"next"


def test_a_sleeping_worker_is_woken(segment, worker):
    got: list[ring.Claim | None] = []
    thread = threading.Thread(target=lambda: got.append(segment.claim(worker, True, 30.0)))
    thread.start()
    segment.put_many([frame(b"wake")])
    thread.join(20)
    assert [item.body for item in got if item] == [b"wake"]


def test_a_claim_returns_after_its_timeout(segment, worker):
    start = time.monotonic()
    assert segment.claim(worker, True, 0.05) is None
    assert 0.04 < time.monotonic() - start < 10


def test_a_stopped_worker_takes_no_more(segment, worker):
    segment.put_many([frame()])
    seen = segment.attention_seen(worker)
    segment.stop(worker)
    assert segment.stopping(worker)
    assert segment.attention_seen(worker) != seen
    assert segment.claim(worker, True, 30.0) is None


@pytest.mark.parametrize(
    ("bad", "error", "sentence"),
    [
        ((b"x", 11, 0.0, 0.0, 0.0), ValueError, "ring is 11"),
        ((b"x", -1, 0.0, 0.0, 0.0), ValueError, "ring is -1"),
        ((b"x", 1, -1.0, 0.0, 0.0), ValueError, "limit is -1"),
        ((b"x", 1, math.nan, 0.0, 0.0), ValueError, "limit is nan"),
        ((b"x", 1, 0.0, 0.0), ValueError, "no frame"),
        ((bytearray(b"x"), 1, 0.0, 0.0, 0.0), TypeError, "bytearray"),
        ((b"x" * 100_000, 1, 0.0, 0.0, 0.0), ValueError, "100000 bytes"),
    ],
)
def test_one_bad_frame_and_nothing_is_put(segment, bad, error, sentence):
    with pytest.raises(error, match=sentence):
        segment.put_many([frame(), bad])
    assert segment.check()["free"] == 8


@pytest.mark.parametrize("owner", [-1, 0, 1, 2 << 12 | 7, 1 << 40])
def test_an_owner_that_was_never_enlisted_is_refused(segment, owner):
    with pytest.raises(ValueError, match="owner"):
        segment.claim(owner, True, 0.0)


@pytest.mark.parametrize("ticket", [-1, 99, 1 << 64])
def test_a_ticket_without_a_slot_is_refused(segment, worker, ticket):
    for call in (
        lambda: segment.free_many([ticket]),
        lambda: segment.cancel(ticket, 0.0),
        lambda: segment.report(worker, ticket, 1, b"", True),
    ):
        with pytest.raises(ValueError, match="ticket"):
            call()


def test_a_higher_priority_is_never_passed_over_by_a_later_claim(segment):
    """What was READY before a claim began comes first; with one claim at a time that is each claim."""
    workers = [segment.enlist(0), segment.enlist(1)]
    segment.put_many([frame(b"low", 0)] * 4)
    # Given a low claim under way in each worker, a high frame arrives
    for worker in workers:
        assert claim(segment, worker).body == b"low"
    segment.put_many([frame(b"high", 9)])
    # Then the next claim of either is the high one
    assert claim(segment, workers[1]).body == b"high"
    assert claim(segment, workers[0]).body == b"low"
