"""Reports from worker to dispatcher: one ring per worker, pieces, forgetting, nonsense."""

import mmap
import os
import random
import threading

import numpy as np
import pytest

from gotask._core import ring

from .conftest import frame

CELLS = 3 + 64


@pytest.fixture
def ticket(segment, worker) -> int:
    segment.put_many([frame()])
    return segment.claim(worker, True, 0.0).ticket


def settle(segment: ring.Segment) -> list[ring.Report]:
    reports = segment.drain(1000)
    segment.free_many([report.ticket for report in reports if report.final])
    segment.forget()
    return reports


def scribble(segment: ring.Segment, old: bytes, new: bytes) -> None:
    """Writes into the segment past all of its own checks, as a wild pointer in a worker would."""
    with mmap.mmap(segment.fileno(), segment.size) as memory:
        at = memory.find(old)
        assert at >= 0
        memory[at : at + len(new)] = new


def test_a_report_tells_ticket_kind_time_and_body(segment, worker, ticket):
    assert segment.report(worker, ticket, 7, b"result", True)
    (report,) = segment.drain(10)
    assert (report.ticket, report.kind, report.final, report.body) == (ticket, 7, True, b"result")
    assert 0 < report.seconds < 60
    assert segment.drain(10) == []


def test_a_final_report_is_the_last(segment, worker, ticket):
    assert segment.report(worker, ticket, 1, b"half way", False)
    assert segment.report(worker, ticket, 2, b"", True)
    assert not segment.report(worker, ticket, 2, b"", True)
    assert [(report.kind, report.final) for report in settle(segment)] == [(1, False), (2, True)]
    # and once it is freed, the ticket is over
    assert not segment.report(worker, ticket, 2, b"", True)
    assert segment.check()["free"] == 8


def test_nobody_reports_for_another(segment, ticket):
    assert not segment.report(segment.enlist(1), ticket, 1, b"", True)


def test_drain_stops_at_its_limit_and_serves_all_workers(segment, worker):
    other = segment.enlist(1)
    segment.put_many([frame()] * 6)
    for who in (worker, other) * 3:
        segment.report(who, segment.claim(who, True, 0.0).ticket, 1, b"", True)
    assert [len(segment.drain(4)), len(segment.drain(4)), len(segment.drain(4))] == [4, 2, 0]


def test_a_full_ring_makes_the_worker_wait_until_forget(segment, worker, ticket):
    # Given a ring that takes no more
    body = b"r" * 900
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.extend(segment.report(worker, ticket, 1, body, False) for _ in range(50)))
    thread.start()
    # When the dispatcher drains and forgets
    got = 0
    while got < 50:
        segment.wait_reports(segment.reports_seen(), 1.0)
        got += len(settle(segment))
    # Then all arrive
    thread.join(20)
    assert answers == [True] * 50


@pytest.mark.parametrize("size", [983, 984, 985, 4096, 1 << 20])
def test_a_large_result_passes_through_a_small_ring_in_pieces(segment, worker, ticket, size):
    body = random.Random(size).randbytes(size)
    thread = threading.Thread(target=segment.report, args=(worker, ticket, 3, body, True))
    thread.start()
    reports: list[ring.Report] = []
    while not reports:
        segment.wait_reports(segment.reports_seen(), 1.0)
        reports = segment.drain(10)
    thread.join(20)
    assert [(report.kind, report.final, report.body == body) for report in reports] == [(3, True, True)]


def test_threads_of_one_worker_may_report_at_once(segment, worker):
    segment.put_many([frame()] * 8)
    tickets = [segment.claim(worker, False, 0.0).ticket for _ in range(8)]
    bodies = {ticket: os.urandom(3000) for ticket in tickets}
    threads = [threading.Thread(target=segment.report, args=(worker, t, 1, bodies[t], True)) for t in tickets]
    for thread in threads:
        thread.start()
    got: dict[int, bytes] = {}
    while len(got) < 8:
        segment.wait_reports(segment.reports_seen(), 1.0)
        got |= {report.ticket: report.body for report in settle(segment)}
    for thread in threads:
        thread.join(20)
    assert got == bodies


def test_the_last_piece_without_the_first_is_torn(segment, worker, ticket):
    # Given a dispatcher that copied early pieces and died
    thread = threading.Thread(target=segment.report, args=(worker, ticket, 3, b"p" * 9000, True))
    thread.start()
    while segment.drain(10) == [] and segment.wait_reports(segment.reports_seen(), 0.01) < 0:
        pass
    segment.adopt()
    # Then its successor learns that the frame ended, and no more
    reports: list[ring.Report] = []
    while not reports:
        segment.wait_reports(segment.reports_seen(), 1.0)
        reports = segment.drain(10)
    thread.join(20)
    assert [(report.kind, report.final, report.body) for report in reports] == [(ring.TORN, True, b"")]


def test_a_scribbled_body_is_torn_and_its_worker_stuck(segment, worker, ticket):
    segment.report(worker, ticket, 1, b"the-result", True)
    scribble(segment, b"the-result", b"THE")
    assert [(report.ticket, report.kind) for report in settle(segment)] == [(ticket, ring.TORN)]
    assert segment.stuck(0.0) == [worker]


@pytest.mark.parametrize("seed", range(200))
def test_nonsense_in_a_report_ring_never_hurts_the_dispatcher(segment, worker, ticket, seed):
    # Given a lane, its counters and its positions written over at random
    chance = random.Random(seed)
    segment.report(worker, ticket, 1, b"the-result", True)
    with mmap.mmap(segment.fileno(), segment.size) as memory:
        at = memory.find(b"the-result") - 40
        for _ in range(chance.randrange(1, 40)):
            memory[at + chance.randrange(-700, 60)] = chance.randrange(256)
    # Then it drains to an end, and the death of that worker frees the rest
    for _ in range(5):
        assert len(settle(segment)) <= 1
    segment.recover(worker, False, 11)
    segment.free_many([loss.ticket for loss in segment.losses()])
    settle(segment)
    assert sum(segment.check().values()) == 8


def test_waiting_returns_at_once_when_something_is_undrained(segment, worker, ticket):
    segment.report(worker, ticket, 1, b"", True)
    segment.wait_reports(segment.reports_seen(), 60.0)


def test_ring_reports_wakes_the_dispatcher(segment):
    seen = segment.reports_seen()
    threading.Timer(0.05, segment.ring_reports).start()
    assert segment.wait_reports(seen, 60.0) != seen


def test_counters_are_a_view_of_what_c_writes(segment, worker, ticket):
    view = segment.counters(0)
    cells = np.frombuffer(view, dtype=np.uint64)
    assert len(cells) == CELLS
    assert list(cells[:2]) == [1, 0]
    segment.report(worker, ticket, 1, b"", True)
    assert list(cells[:2]) == [1, 1]
    assert cells[2] > 0
    assert cells[3:].sum() == 1
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    # and the segment cannot go away under it
    with pytest.raises(BufferError, match="views"):
        segment.close()
    del cells
    view.release()


@pytest.mark.parametrize("kind", [-1, 128, 300])
def test_a_kind_of_the_cores_own_is_refused(segment, worker, ticket, kind):
    with pytest.raises(ValueError, match="kind"):
        segment.report(worker, ticket, kind, b"", True)


def test_a_checksum_sees_each_byte():
    body = bytes(range(100))
    changed = {ring.checksum(body[:i] + b"\xff" + body[i + 1 :]) for i in range(100)}
    assert len(changed | {ring.checksum(body)}) == 101
    assert len({ring.checksum(bytes(n)) for n in range(64)}) == 64
