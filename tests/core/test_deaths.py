"""Who is late, who is dead, and what becomes of its frames; what a new dispatcher finds."""

import mmap
import os
import signal
import time
from collections.abc import Callable

import pytest

from gotask._core import ring

from .conftest import frame


def take(segment: ring.Segment, worker: int, *frames: ring.Frame) -> list[int]:
    segment.put_many(list(frames))
    return [segment.claim(worker, True, 0.0).ticket for _ in frames]


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end


def verdicts(segment: ring.Segment) -> dict[int, int]:
    return {loss.ticket: loss.verdict for loss in segment.losses()}


def test_the_only_frame_of_a_dead_worker_is_the_suspect(segment, worker):
    (ticket,) = take(segment, worker, frame())
    # When its worker was reaped with signal 9
    assert segment.recover(worker, False, 9) == 1
    # Then it is listed until freed
    assert segment.losses() == segment.losses() == [ring.Loss(ticket, ring.SUSPECT_ALONE, 9)]
    segment.free_many([ticket])
    assert segment.losses() == []
    assert segment.check()["free"] == 8


def test_frames_that_died_together_are_all_suspects(segment, worker):
    tickets = take(segment, worker, frame(), frame())
    segment.recover(worker, False, 11)
    assert verdicts(segment) == dict.fromkeys(tickets, ring.SUSPECT)


def test_a_worker_killed_on_purpose_leaves_innocents_beside_the_overdue(segment, worker):
    late, good = take(segment, worker, frame(limit=1e-6), frame())
    eventually(lambda: segment.overdue(worker) == [late])
    segment.recover(worker, True, 9)
    assert verdicts(segment) == {late: ring.OVERDUE, good: ring.INNOCENT}


def test_a_cancelled_frame_that_would_not_stop_is_overdue(segment, worker):
    stubborn, good = take(segment, worker, frame(), frame())
    assert segment.cancel(stubborn, 0.0)
    segment.recover(worker, True, 9)
    assert verdicts(segment) == {stubborn: ring.OVERDUE, good: ring.INNOCENT}


def test_within_its_grace_it_is_not_overdue(segment, worker):
    take(segment, worker, frame(limit=1e-6, grace=60.0))
    segment.recover(worker, False, 9)
    assert list(verdicts(segment).values()) == [ring.SUSPECT_ALONE]


def test_what_was_published_stands(segment, worker):
    told, lost = take(segment, worker, frame(), frame())
    segment.report(worker, told, 5, b"done", True)
    # When the worker dies before anybody drained
    assert segment.recover(worker, False, 9) == 1
    # Then one is reported and one is lost, which had no unfinished neighbour
    assert [(report.ticket, report.body) for report in segment.drain(10)] == [(told, b"done")]
    assert verdicts(segment) == {lost: ring.SUSPECT_ALONE}


def test_what_was_drained_before_the_death_stands_too(segment, worker):
    (told,) = take(segment, worker, frame())
    segment.report(worker, told, 5, b"done", True)
    assert len(segment.drain(10)) == 1
    assert segment.recover(worker, False, 9) == 0
    segment.free_many([told])
    segment.forget()
    assert (segment.losses(), segment.check()["free"]) == ([], 8)


def test_a_progress_report_is_no_end(segment, worker):
    (ticket,) = take(segment, worker, frame())
    segment.report(worker, ticket, 1, b"half", False)
    assert segment.recover(worker, False, 9) == 1
    assert [report.final for report in segment.drain(10)] == [False]


def test_recover_is_repeatable(segment, worker):
    take(segment, worker, frame(), frame())
    assert [segment.recover(worker, False, 9) for _ in range(3)] == [2, 0, 0]
    assert set(verdicts(segment).values()) == {ring.SUSPECT}


def test_recover_touches_nobody_else(segment, worker):
    other = segment.enlist(1)
    (kept,) = take(segment, other, frame())
    segment.put_many([frame()])
    segment.recover(worker, False, 9)
    assert segment.check() == {"free": 6, "ready": 1, "taken": 1, "lost": 0}
    assert segment.report(other, kept, 1, b"", True)


def test_recover_wakes_the_dispatcher(segment, worker):
    seen = segment.reports_seen()
    segment.recover(worker, False, 9)
    assert segment.wait_reports(seen, 60.0) != seen


def test_the_pieces_of_a_dead_worker_are_dropped(segment, worker):
    (ticket,) = take(segment, worker, frame())

    # Given a result of which only some pieces found room when its worker died; a signal stands for the death
    def leave(*_: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(InterruptedError):
        segment.report(worker, ticket, 1, b"p" * 9000, True)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert segment.drain(10) == []
    assert segment.recover(worker, False, 9) == 1
    segment.free_many([ticket])
    # Then its successor in the lane starts clean
    life = segment.enlist(0)
    (again,) = take(segment, life, frame())
    assert segment.report(life, again, 1, b"q", True)
    assert [(report.ticket, report.body) for report in segment.drain(10)] == [(again, b"q")]


def test_a_new_life_needs_the_last_one_recovered(segment, worker):
    with pytest.raises(RuntimeError, match="recover"):
        segment.enlist(0)
    segment.recover(worker, False, 0)
    life = segment.enlist(0)
    assert life != worker
    # and the old one may do nothing any more
    with pytest.raises(ValueError, match="present life"):
        segment.claim(worker, True, 0.0)


def test_a_dead_sleeper_does_not_count_as_one(segment, worker):
    """Else each put would pay a system call for it, for ever."""
    sleepers = 136  # bytes into the header: `waiters` of its first event
    pid = os.fork()
    if pid == 0:
        segment.claim(worker, True, 60.0)
        os._exit(0)
    with mmap.mmap(segment.fileno(), segment.size) as memory:
        eventually(lambda: memory[sleepers] == 1 and _sleeps(pid))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        segment.recover(worker, False, 9)
        assert memory[sleepers] == 0


def _sleeps(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def test_overdue_and_cancelled_are_told_to_their_worker(segment, worker):
    late, asked, good = take(segment, worker, frame(limit=1e-6), frame(), frame(limit=3600.0))
    seen = segment.attention_seen(worker)
    assert segment.cancel(asked, 60.0)
    assert segment.wait_attention(worker, seen, 60.0) != seen
    assert (segment.cancelled(asked), segment.cancelled(good)) == (True, False)
    eventually(lambda: sorted(segment.overdue(worker)) == sorted([late, asked]))
    # and what has ended is not overdue
    segment.report(worker, late, 1, b"", True)
    assert segment.overdue(worker) == [asked]
    assert segment.held(worker) == 2


def test_cancelling_what_waits_recalls_it(segment, worker):
    (ticket,) = segment.put_many([frame()])
    assert not segment.cancel(ticket, 1.0)
    assert segment.claim(worker, True, 0.0) is None
    assert not segment.cancel(ticket, 1.0)
    assert segment.check()["free"] == 8


def test_stuck_is_late_beyond_its_grace_and_the_slack(segment, worker):
    (ticket,) = take(segment, worker, frame(limit=1e-6, grace=1e-6))
    eventually(lambda: segment.stuck(0.0) == [worker])
    assert segment.stuck(60.0) == []
    segment.report(worker, ticket, 1, b"", True)
    assert segment.stuck(0.0) == []


def test_a_successor_of_the_dispatcher_finds_all(segment, worker):
    # Given one frame waiting, one held, one reported and drained but not forgotten, one lost
    other = segment.enlist(1)
    (lost,) = take(segment, other, frame(b"lost"))
    segment.recover(other, False, 9)
    told, held = take(segment, worker, frame(b"told"), frame(b"held"))
    segment.report(worker, told, 1, b"result", True)
    (ready,) = segment.put_many([frame(b"ready" * 200)])
    assert len(segment.drain(10)) == 1
    # When the dispatcher dies and another takes over
    stays = {stay.ticket: (stay.claimed, stay.body) for stay in segment.adopt()}
    # Then it lists them, drains again, and goes on
    assert stays == {
        lost: (True, b"lost"),
        told: (True, b"told"),
        held: (True, b"held"),
        ready: (False, b"ready" * 200),
    }
    assert [(report.ticket, report.body) for report in segment.drain(10)] == [(told, b"result")]
    assert [loss.ticket for loss in segment.losses()] == [lost]
    segment.free_many([told, lost])
    segment.forget()
    assert segment.claim(worker, True, 0.0).ticket == ready
    assert segment.room() == 6


def test_what_was_freed_is_not_drained_twice(segment, worker):
    # Given a dispatcher that settled and freed, and died before it forgot
    (told,) = take(segment, worker, frame())
    segment.report(worker, told, 1, b"", True)
    segment.drain(10)
    segment.free_many([told])
    segment.adopt()
    assert segment.drain(10) == []
    assert segment.room() == 8


def test_adopt_does_not_hint_twice(segment, worker):
    segment.put_many([frame(b"a"), frame(b"b")])
    for _ in range(50):
        segment.adopt()
    assert [segment.claim(worker, True, 0.0).body for _ in range(2)] == [b"a", b"b"]
    assert segment.claim(worker, True, 0.0) is None
    assert segment.waiting(1) == 0
