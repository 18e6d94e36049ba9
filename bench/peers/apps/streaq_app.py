"""streaQ: many jobs at once on uvloop, no results (ttl=0), no log line for each job."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from marks import mark
from producer import Way
from streaq import Worker

worker = Worker(os.environ["PEERS_REDIS"], concurrency=32, prefetch=64, anyio_kwargs={"use_uvloop": True})


@worker.task(ttl=0, silent=True)
async def noop(text: str) -> None:
    mark(text)


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async def one(text: str) -> None:
        await noop.enqueue(text)

    async def many(texts: list[str]) -> None:
        await worker.enqueue_many([noop.enqueue(text) for text in texts])

    async with worker:
        yield Way(one, many)
