"""Chancy: many coroutines in each worker, which asks for more once one has ended. `python chancy_app.py` makes the tables."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chancy import Chancy, Queue, job
from chancy.plugins.leadership import Leadership
from chancy.plugins.pruner import Pruner
from chancy.plugins.recovery import Recovery
from marks import mark
from producer import Way

logging.basicConfig(level=logging.WARNING)
chancy = Chancy(
    os.environ["PEERS_POSTGRES"],
    plugins=[Leadership(), Pruner(), Recovery()],
    no_default_plugins=True,
    log=logging.getLogger("quiet"),
)
queue = Queue("default", concurrency=2000, executor=Chancy.Executor.Async, eager_polling=True)


@job(queue="default")
async def noop(*, text: str) -> None:
    mark(text)


async def install() -> None:
    async with chancy:
        await chancy.migrate()
        await chancy.declare(queue, upsert=True)


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async def one(text: str) -> None:
        await chancy.push(noop.job.with_kwargs(text=text))

    async def many(texts: list[str]) -> None:
        async for _ in chancy.push_many([noop.job.with_kwargs(text=text) for text in texts]):
            pass

    async with chancy:
        yield Way(one, many)


if __name__ == "__main__":
    asyncio.run(install())
