"""The program that enqueues for a peer, inside the peer's own environment: `python -m producer APP`.

It answers each line of JSON on its standard input with one on its output:

    {"do": "fill", "count": N}                  enqueue N, the first part one by one and the rest in batches
    {"do": "steady", "rate": R, "seconds": S}   enqueue R jobs per second, one by one
    {"do": "pickup", "count": N, "seconds": S}  enqueue a job, wait until it runs, pause, repeat
"""

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple

import marks

BATCH: Final = 1000  #: jobs handed to `many` at once
ONE_S: Final = 1.0  #: seconds at most of enqueueing one by one, where there is a faster way
PAUSE_S: Final = (0.002, 0.018)  #: seconds between pickups, random so that they do not fall in step with anybody's polling


class Way(NamedTuple):
    """How a peer enqueues: one job, and many if it has a way that is faster than one by one."""

    one: Callable[[str], Awaitable[object]]
    many: Callable[[list[str]], Awaitable[object]] | None = None


@asynccontextmanager
async def plain(one: Callable[[str], object], many: Callable[[list[str]], object] | None = None) -> AsyncIterator[Way]:
    """The way of a peer without coroutines."""

    async def send(text: str) -> None:
        one(text)

    async def send_many(texts: list[str]) -> None:
        assert many is not None
        many(texts)

    yield Way(send, many and send_many)


async def fill(way: Way, count: int) -> dict[str, Any]:
    part = count // 4 if way.many else count
    begun = time.perf_counter()
    number = 0
    while number < part and not (way.many and time.perf_counter() - begun > ONE_S):
        await way.one(marks.text(number))
        number += 1
    answer: dict[str, Any] = {"one": number / (time.perf_counter() - begun), "many": None}
    if way.many:
        rest, begun = count - number, time.perf_counter()
        for at in range(number, count, BATCH):
            await way.many([marks.text(each) for each in range(at, min(at + BATCH, count))])
        answer["many"] = rest / (time.perf_counter() - begun)
    return answer


async def steady(way: Way, rate: float, seconds: float) -> dict[str, Any]:
    begun = time.monotonic()
    count = int(rate * seconds)
    for number in range(count):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        await way.one(marks.text(time.monotonic_ns()))
    return {"sent": count}


async def pickup(way: Way, count: int, seconds: float) -> dict[str, Any]:
    before, begun, sent = marks.count(), time.monotonic(), 0
    while sent < count and time.monotonic() - begun < seconds:
        await way.one(marks.text(time.monotonic_ns()))
        sent += 1
        while marks.count() < before + sent:
            if time.monotonic() - begun > seconds + 10:
                raise TimeoutError("a job was not picked up within 10 s")
            await asyncio.sleep(0.001)
        await asyncio.sleep(random.uniform(*PAUSE_S))
    return {"sent": sent}


async def serve(opened: AbstractAsyncContextManager[Way]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to the log
    async with opened as way:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            answer = await {"fill": fill, "steady": steady, "pickup": pickup}[asked.pop("do")](way, **asked)
            print(json.dumps(answer), file=answers, flush=True)


def main(app: str) -> None:
    try:
        from uvloop import new_event_loop  # where the peer's environment has it
    except ImportError:
        from asyncio import new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(import_module(app).way()))


if __name__ == "__main__":
    # the apps import this module by its name, and must find the same Way
    sys.modules["producer"] = sys.modules["__main__"]
    main(sys.argv[1])
