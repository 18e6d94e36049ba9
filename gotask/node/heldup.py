"""Endings that the store could not write down, since others hold their jobs: somebody in psql, say, who has locked a row.

They are asked for again and again beside all else, on a thread and a connection of their own, and each time the store waits for
those jobs as long as a call may take. So whoever lets go of one mostly lets this in first, before anybody finds that its lease
has lapsed meanwhile. Their slots are free, and what was reported is overwritten, so they are left to the next dispatcher,
should this one die.
"""

import logging
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec

from gotask.backends import Backend
from gotask.clock import monotonic
from gotask.errors import BackendDown
from gotask.model import Beat, Settlement
from gotask.node.notices import HELD_UP_AT, Notices

AGAIN_S: Final = 1.0  #: seconds between the beginnings of two tries at least; one that waits for jobs takes longer by itself
COMPLAIN_S: Final = 10.0  #: seconds between two lines about this
log = logging.getLogger("gotask.node")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Settlement]).decode


class HeldUp:
    """`wake` is called, from any thread, when there is an answer to look at."""

    def __init__(self, backend: Backend, notices: Notices, wake: Callable[[], None]) -> None:
        self._backend = backend
        self._notices = notices
        self._wake = wake
        self._endings: dict[tuple[str, int], Settlement] = {}
        self._thread = ThreadPoolExecutor(1, "held-up")
        self._asked: list[Settlement] = []
        self._answer: Future[Sequence[bool | None]] | None = None
        self._again_at = self._complain_at = 0.0

    def __len__(self) -> int:
        return len(self._endings)

    @property
    def runs(self) -> Set[tuple[str, int]]:
        """The id and lease of each."""
        return self._endings.keys()

    def beats(self) -> list[Beat]:
        return [Beat(id, lease) for id, lease in self._endings]

    def adopt(self) -> None:
        """Take over what a dead predecessor had in hand."""
        left = self._notices.left(HELD_UP_AT)
        self._endings = {(one.id, one.lease): one for one in (_decode(left) if left is not None else ())}

    def keep(self, settlements: Sequence[Settlement], answers: Sequence[bool | None]) -> None:
        """Of endings and what the store answered, those that it could not write down. Call it before their slots are freed."""
        found = {(one.id, one.lease): one for one, held in zip(settlements, answers, strict=True) if held is None}
        if found:
            self._endings |= found
            self._leave()

    def look(self) -> Sequence[bool | None]:
        """The answers of the last try, if it is over and they are new; the next one is begun when it is time. Never waits."""
        answers = self._take()
        if self._answer is None and self._endings and monotonic() >= self._again_at:
            self._again_at = monotonic() + AGAIN_S
            self._asked = list(self._endings.values())
            self._answer = self._thread.submit(self._backend.settle_many, self._asked)
            self._answer.add_done_callback(lambda _: self._wake())
        return answers

    def _take(self) -> Sequence[bool | None]:
        if self._answer is None or not self._answer.done():
            return []
        answer, self._answer = self._answer, None
        try:
            answers = answer.result()
        except BackendDown:  # the dispatcher's own calls find out, and say so
            return []
        over = [(one.id, one.lease) for one, held in zip(self._asked, answers, strict=True) if held is not None]
        for run in over:
            self._endings.pop(run)
        if over:
            self._leave()
        if None in answers:  # also after it was waited for
            self._complain()
        return answers

    @property
    def rest(self) -> float:
        """Seconds until the next try; infinite while one is under way, and if there is nothing to try."""
        return max(0.0, self._again_at - monotonic()) if self._endings and self._answer is None else float("inf")

    def close(self) -> None:
        """Wait for nothing: what is under way is done by the store, or not, and both are right."""
        self._thread.shutdown(wait=False)
        self._take()
        if self._endings:
            log.warning("%s, so the job runs again once its lease has lapsed.", self._said())

    def _complain(self) -> None:
        if monotonic() >= self._complain_at:
            self._complain_at = monotonic() + COMPLAIN_S
            log.warning("%s: end that transaction. Until then this is tried again, and holds up nothing else.", self._said())

    def _said(self) -> str:
        first, *others = sorted(self._endings)
        more = f" (and {len(others)} more)" if others else ""
        return f"The end of a lease of job {first[0]}{more} cannot be written down, since another transaction has locked it"

    def _leave(self) -> None:
        self._notices.leave(_encode(list(self._endings.values())), HELD_UP_AT)
