"""Coroutines as tasks, enqueued and awaited from a coroutine.

gotask-worker -A async_tasks:app -c 100 &
python async_tasks.py
"""

import asyncio

from gotask import GoTask

app = GoTask()


@app.task(queue="web", timeout=10)
async def fetch(host: str, port: int = 80) -> str:
    """The first line a web server says."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"HEAD / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return line.decode().strip()


async def main(hosts: list[str]) -> None:
    jobs = [await fetch.aenqueue(host) for host in hosts]
    for host, line in zip(hosts, await asyncio.gather(*jobs), strict=True):
        print(f"{host}: {line}")


if __name__ == "__main__":
    asyncio.run(main(["example.com", "example.org"]))
