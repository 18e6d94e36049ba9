"""PgQueuer: a connection for each worker and a pool for the producer, as its guide to performance has it.

`python pgqueuer_app.py` is a worker. That is the library's own way to do without `pgq run`, which takes no log level with the
typer of today, and writes a line for each job.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pgqueuer
import uvloop
from marks import mark
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from producer import Way

URL = os.environ["PEERS_POSTGRES"]
BATCH = 500


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    connection = await asyncpg.connect(URL)
    pgq = PgQueuer(AsyncpgDriver(connection))

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        mark(json.loads(job.payload or b"")["text"])

    yield pgq
    await connection.close()


def payload(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    async with asyncpg.create_pool(URL, min_size=2, max_size=10) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))

        async def one(text: str) -> None:
            await queries.enqueue("noop", payload(text))

        async def many(texts: list[str]) -> None:
            await queries.enqueue(["noop"] * len(texts), [payload(text) for text in texts], [0] * len(texts))

        yield Way(one, many)


if __name__ == "__main__":
    uvloop.run(pgqueuer.run(worker, batch_size=BATCH))
