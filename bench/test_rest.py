"""`POST /api/v1/jobs` at a fixed rate beside a working node, as one of many clients sees it."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from bench.node import node, server

RATE = 500  #: requests a second
SECONDS = 10.0
CONNECTIONS = 16
BODY = b'{"type":"noop","payload":{"text":"' + b"x" * 88 + b'"}}'


async def post(host: str, port: int, due: "asyncio.Queue[float | None]", took: list[float]) -> None:
    """One kept-alive connection. A request's time counts from when it was due, so that a stall is seen by all that wait."""
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}"
    request = head.encode() + b"\r\n\r\n" + BODY
    while (moment := await due.get()) is not None:
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 201"), answer
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        took.append(time.perf_counter() - moment)
    writer.close()
    await writer.wait_closed()


async def load(url: str) -> list[float]:
    host, port = url.removeprefix("http://").split(":")
    due: asyncio.Queue[float | None] = asyncio.Queue()
    took: list[float] = []
    clients = [asyncio.create_task(post(host, int(port), due, took)) for _ in range(CONNECTIONS)]
    begun = time.perf_counter()
    for number in range(int(RATE * SECONDS)):
        moment = begun + number / RATE
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        due.put_nowait(moment)
    for _ in clients:
        due.put_nowait(None)
    await asyncio.gather(*clients)
    return took


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_post_beside_a_working_node(benchmark, figure, storage: str, tmp_path: Path) -> None:
    took: list[float] = []
    with server(storage, tmp_path) as url, node(storage, tmp_path):
        benchmark.pedantic(lambda: took.extend(asyncio.run(load(url))), rounds=1)
    milliseconds = np.percentile(took, [50, 95]) * 1e3
    figure(f"POST /api/v1/jobs at {RATE}/s, p50", milliseconds[0], "ms", "")
    figure(f"POST /api/v1/jobs at {RATE}/s, p95", milliseconds[1], "ms", "<= 20")
