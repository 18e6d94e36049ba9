"""procrastinate: coroutines on psycopg's pool."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from marks import mark
from procrastinate import App, PsycopgConnector
from producer import Way

app = App(connector=PsycopgConnector(conninfo=os.environ["PEERS_POSTGRES"], min_size=4, max_size=20))


@app.task(name="noop")
async def noop(text: str) -> None:
    mark(text)


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async def one(text: str) -> None:
        await noop.defer_async(text=text)

    async def many(texts: list[str]) -> None:
        await noop.batch_defer_async(*({"text": text} for text in texts))

    async with app.open_async():
        yield Way(one, many)
