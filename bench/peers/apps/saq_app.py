"""SAQ: jobs are deleted when they end (ttl=-1) and have no time-out."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from marks import mark
from producer import Way
from saq import Queue

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
queue = Queue.from_url(os.environ["PEERS_REDIS"])


async def noop(_: object, *, text: str) -> None:
    mark(text)


settings = {"queue": queue, "functions": [noop], "concurrency": 100}


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async def one(text: str) -> None:
        await queue.enqueue("noop", text=text, ttl=-1, timeout=0)

    async def many(texts: list[str]) -> None:
        for at in range(0, len(texts), 50):
            await asyncio.gather(*map(one, texts[at : at + 50]))

    yield Way(one, many)
    await queue.disconnect()
