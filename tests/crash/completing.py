"""Tasks that complete their own jobs: each writes one row and ends its job in one transaction, then does what it is told."""

import asyncio
import os
import signal
import time
from urllib.parse import parse_qs, urlsplit

import psycopg

from gotask import Context, GoTask, LeaseLost

STORAGE = os.environ["GOTASK_STORAGE"]
TABLE = f'"{parse_qs(urlsplit(STORAGE).query)["schema"][0]}".effects'
app = GoTask()
kept: list[psycopg.Connection] = []


def connected() -> psycopg.Connection:
    return psycopg.connect(STORAGE.partition("?")[0])


def write(link: psycopg.Connection, ctx: Context) -> None:
    link.execute(f"INSERT INTO {TABLE} VALUES (%s, %s)", (ctx.id, ctx.attempt))  # type: ignore[arg-type]


def act(link: psycopg.Connection, n: int, how: str, ctx: Context) -> None:
    """The row, the completion, and at the first attempt a mishap."""
    mishap = how if ctx.attempt == 1 else ""
    if mishap == "late":
        time.sleep(1.5)
    write(link, ctx)
    if mishap == "savepoint":
        with link.transaction() as inner:
            ctx.complete(link, {"n": n})
            raise psycopg.Rollback(inner)
    else:
        ctx.complete(link, {"n": n})
    match mishap:
        case "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        case "rollback" | "forget" | "open":
            link.rollback() if mishap == "rollback" else None
            kept.extend([link] if mishap == "open" else [])
            return
        case "raise before":
            raise RuntimeError("before the commit")
        case "again":
            link.rollback()
            write(link, ctx)
            ctx.complete(link, {"n": n})
        case "slow":
            time.sleep(3)
    link.commit()
    match mishap:
        case "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise after":
            raise RuntimeError("after the commit")


@app.task(max_retries=2, retry_delay=0.05)
def pay(n: int, how: str, ctx: Context) -> str:
    link = connected()
    if how == "late":
        try:
            act(link, n, how, ctx)
        except LeaseLost:
            link.commit()  # what nobody should do, and what must do no harm
        return "swallowed"
    act(link, n, how, ctx)
    return "ignored"


@app.task(max_retries=2, retry_delay=0.05)
async def apay(n: int, how: str, ctx: Context) -> str:
    await asyncio.sleep(0.001)
    act(connected(), n, how, ctx)
    return "ignored"


@app.task(max_retries=0)
def let_go() -> int:
    """Ends the transactions that were left open in this process."""
    count = len(kept)
    while kept:
        kept.pop().close()
    return count


@app.task(max_retries=0)
def astray(ctx: Context) -> None:
    """Completes over what is no connection."""
    ctx.complete("postgres://")
