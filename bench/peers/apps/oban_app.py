"""Oban's Python port, the free version."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from marks import mark
from oban import Oban, job
from producer import Way


@job(queue="default")
async def noop(text: str) -> None:
    mark(text)


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    pool = await Oban.create_pool(dsn=os.environ["PEERS_POSTGRES"])
    oban = Oban(pool=pool)

    async def one(text: str) -> None:
        await oban.enqueue(noop.new(text))  # noop.enqueue of 0.7.0 puts the arguments into themselves

    async def many(texts: list[str]) -> None:
        await oban.enqueue_many(noop.new(text) for text in texts)

    async with oban:
        yield Way(one, many)
    await pool.close()
