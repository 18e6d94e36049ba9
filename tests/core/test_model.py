"""The ring against a model of it that anybody can read: a heap, a few dictionaries, no memory shared with anyone."""

import heapq
import math
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from gotask._core import ring

SLOTS, WORKERS = 6, 2


class Model(RuleBasedStateMachine):
    """`ready` is the oracle's heap of (-priority, age, ticket); the rest says who holds what and what was said."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.segment = ring.Segment(slots=SLOTS, workers=WORKERS, slot_bytes=64, report_bytes=4096, blocks=4, block_bytes=64)
        self.owners = [self.segment.enlist(index) for index in range(WORKERS)]
        self.ready: list[tuple[int, int, int]] = []
        self.bodies: dict[int, bytes] = {}
        self.taken: dict[int, int] = {}  # ticket -> worker index
        self.ended: dict[int, bytes] = {}  # reported, not settled
        self.lost: set[int] = set()
        self.drained: list[int] = []
        self.age = 0

    def teardown(self) -> None:
        self.segment.close()

    def blocks_used(self) -> int:
        return sum(-(-len(body) // 64) for body in self.bodies.values() if len(body) > 64)

    @rule(body=st.binary(max_size=200), priority=st.integers(0, 9))
    def put(self, body: bytes, priority: int) -> None:
        need = -(-len(body) // 64) if len(body) > 64 else 0
        fits = len(self.bodies) < SLOTS and self.blocks_used() + need <= 4
        tickets = self.segment.put_many([(body, priority, 0.0, 0.0, math.inf)])
        assert len(tickets) == fits
        for ticket in tickets:
            assert ticket not in self.bodies
            self.bodies[ticket] = body
            self.age += 1
            heapq.heappush(self.ready, (-priority, self.age, ticket))

    @rule(target=held, worker=st.integers(0, WORKERS - 1))
    def claim(self, worker: int) -> Any:
        got = self.segment.claim(self.owners[worker], True, 0.0)
        if not self.ready:
            assert got is None
            return multiple()
        *_, ticket = heapq.heappop(self.ready)
        assert got == (ticket, self.bodies[ticket])
        self.taken[ticket] = worker
        return ticket

    @rule(ticket=consumes(held), result=st.binary(max_size=300), worker=st.integers(0, WORKERS - 1))
    def report(self, ticket: int, result: bytes, worker: int) -> None:
        mine = self.taken.get(ticket) == worker and ticket not in self.ended
        assert self.segment.report(self.owners[worker], ticket, 1, result, True) == mine
        if mine:
            self.ended[ticket] = result

    @rule()
    def recall(self) -> None:
        assert sorted(self.segment.recall(0.0)) == sorted(ticket for *_, ticket in self.ready)
        for *_, ticket in self.ready:
            del self.bodies[ticket]
        self.ready = []

    @rule(worker=st.integers(0, WORKERS - 1))
    def die(self, worker: int) -> None:
        gone = {t for t, who in self.taken.items() if who == worker and t not in self.ended and t not in self.lost}
        assert self.segment.recover(self.owners[worker], False, 9) == len(gone)
        self.lost |= gone
        self.owners[worker] = self.segment.enlist(worker)
        for ticket in [t for t, who in self.taken.items() if who == worker]:
            self.taken[ticket] = -1

    @rule(limit=st.integers(1, 4))
    def drain(self, limit: int) -> None:
        waiting = {t: result for t, result in self.ended.items() if t not in self.drained}
        reports = self.segment.drain(limit)
        assert len(reports) == min(limit, len(waiting))
        for report in reports:
            assert report.body == waiting.pop(report.ticket)
            self.drained.append(report.ticket)

    @rule()
    def settle(self) -> None:
        assert {loss.ticket for loss in self.segment.losses()} == self.lost
        self.segment.free_many([*self.drained, *self.lost])
        for ticket in (*self.drained, *self.lost):
            del self.bodies[ticket], self.taken[ticket]
            self.ended.pop(ticket, None)
        self.segment.forget()
        self.drained, self.lost = [], set()

    @rule()
    def lose_the_dispatcher(self) -> None:
        stays = self.segment.adopt()
        waiting = {ticket for *_, ticket in self.ready}
        assert {(stay.ticket, stay.claimed, stay.body) for stay in stays} == {
            (ticket, ticket not in waiting, body) for ticket, body in self.bodies.items()
        }
        self.drained = []

    @invariant()
    def counts_agree(self) -> None:
        assert self.segment.check() == {
            "free": SLOTS - len(self.bodies),
            "ready": len(self.ready),
            "taken": len(self.taken) - len(self.lost),
            "lost": len(self.lost),
        }
        assert self.segment.room() == SLOTS - len(self.bodies)


Model.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
