"""arq: many jobs at once, a short poll, no results."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from marks import mark
from producer import Way

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def noop(_: object, text: str) -> None:
    mark(text)


class WorkerSettings:
    functions = (noop,)
    redis_settings = RedisSettings.from_dsn(os.environ["PEERS_REDIS"])
    max_jobs = 1000
    poll_delay = 0.005
    keep_result = 0
    log_results = False


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    pool = await create_pool(WorkerSettings.redis_settings)

    async def one(text: str) -> None:
        await pool.enqueue_job("noop", text)

    async def many(texts: list[str]) -> None:
        for at in range(0, len(texts), 50):
            await asyncio.gather(*map(one, texts[at : at + 50]))

    yield Way(one, many)
    await pool.aclose()
