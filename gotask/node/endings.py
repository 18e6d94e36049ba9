"""From what has ended to what is written down, and whose slot is free again."""

import logging
from collections.abc import Callable, Collection, Sequence

from gotask._core.ring import Segment
from gotask.clock import monotonic
from gotask.model import Settlement
from gotask.node.heldup import HeldUp
from gotask.node.leaser import Leaser
from gotask.node.ledger import Ledger
from gotask.node.settler import Settler
from gotask.states import Event

log = logging.getLogger("gotask.node")


class Endings:
    def __init__(self, settler: Settler, segment: Segment, ledger: Ledger, leaser: Leaser, held_up: HeldUp) -> None:
        self._settler = settler
        self._segment = segment
        self._ledger = ledger
        self._leaser = leaser
        self._held_up = held_up

    def settle(self, meanwhile: Callable[[], int] | None = None) -> int:
        """Write all endings down, then free their slots, then let workers overwrite the reports: in this order.

        `meanwhile` is done before the end of that is waited for; how much was moved by both. Raises BackendDown, and keeps all.
        """
        settlements, tickets = self._ledger.take_ended()
        begun = monotonic()
        end = self._settler.begin(settlements)
        try:
            moved = meanwhile() if meanwhile is not None else 0
        finally:
            try:
                answers = end()
            except BaseException:
                self._ledger.unwritten()
                raise
            self._settled(settlements, answers, tickets)
            moved_too = self._ledger.written()
        if settlements and None not in answers:
            self._leaser.measure_trip((monotonic() - begun) / (1 if meanwhile is None else 2))
        return moved + moved_too

    def _settled(self, settlements: Sequence[Settlement], answers: Sequence[bool | None], tickets: Collection[int]) -> None:
        self._note_late(answers)
        self._held_up.keep(settlements, answers)
        if any(settlement.event is Event.RELEASE for settlement in settlements):
            self._leaser.more()
        if tickets:
            self._segment.free_many(list(tickets))
            self._leaser.freed(len(tickets))
        self._segment.forget()

    def settle_held_up(self) -> int:
        """See what became of those that others held up; how many are known by now. Waits for nothing."""
        answers = self._held_up.look()
        self._note_late(answers)
        if True in answers:  # it may be that one was given back
            self._leaser.more()
        return sum(held is not None for held in answers)

    def _note_late(self, answers: Sequence[bool | None]) -> None:
        late = sum(held is False for held in answers)
        if late:
            why = "had been taken away before they were settled, or an earlier answer was lost"
            log.warning("%d jobs %s; what is stored of them counts.", late, why)

    def close(self) -> None:
        self._settler.close()
        self._held_up.close()
