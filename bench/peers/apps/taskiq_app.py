"""Taskiq, with either of the brokers of taskiq-redis, and no result backend."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from marks import mark
from producer import Way
from taskiq_redis import ListQueueBroker, RedisStreamBroker

if os.environ["TASKIQ_BROKER"] == "list":
    broker = ListQueueBroker(os.environ["PEERS_REDIS"])
else:
    # "0-0": the group reads what was queued before the first worker came, too
    broker = RedisStreamBroker(os.environ["PEERS_REDIS"], consumer_id="0-0")


@broker.task(task_name="noop")
async def noop(text: str) -> None:
    mark(text)


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async def many(texts: list[str]) -> None:
        for at in range(0, len(texts), 50):
            await asyncio.gather(*map(noop.kiq, texts[at : at + 50]))

    await broker.startup()
    yield Way(noop.kiq, many)
    await broker.shutdown()
