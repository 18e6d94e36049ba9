"""Batches that form by themselves: while the store is busy with one, the next gathers. No timers, no knobs."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from gotask.errors import Overloaded

T = TypeVar("T")
R = TypeVar("R")

BATCH: Final = 500  #: items in one call of the store; larger batches gain nothing and make others wait
BACKLOG: Final = 20_000  #: items that may wait; beyond it the store is hopelessly behind, and memory is the next to go


class Gather(Generic[T, R]):
    """Many callers, one call of `many` at a time, on a thread of its own so that nothing slow stands before it.

    An exception among the answers of `many` is raised for the caller whose item it answers.
    """

    def __init__(self, many: Callable[[Sequence[T]], Sequence[R | Exception]]) -> None:
        self._many = many
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._busy: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "gather")

    async def submit(self, item: T) -> R:
        """The answer for `item`. Raises Overloaded when too much waits already."""
        if len(self._waiting) >= BACKLOG:
            raise Overloaded("The store is behind with what was sent already; try again in a moment.", retry_after=1.0)
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._busy is None:
            self._busy = asyncio.create_task(self._drain())
        return await answer

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    answers = await loop.run_in_executor(self._thread, self._many, [item for item, _ in batch])
                except Exception as error:
                    for _, answer in batch:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for (_, answer), result in zip(batch, answers, strict=True):
                    if answer.done():  # its client may have gone
                        continue
                    if isinstance(result, Exception):
                        answer.set_exception(result)
                    else:
                        answer.set_result(result)
        finally:
            self._busy = None
