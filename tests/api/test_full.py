"""A store that becomes full in the middle of a batch: each producer is told what became of its own jobs."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import falcon.testing
import pytest

from gotask import backends
from gotask.api import rest
from gotask.backends import Backend
from gotask.model import Filter
from gotask.service import Service
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

JOBS = 450  #: that come at once, and so in one batch
BODY = {"type": "noop", "payload": {"text": "x" * 12_000}}
ROOM = 4_200_000  #: bytes: enough for some of them


@pytest.fixture
def server(start_redis: StartRedis) -> Redis:
    return start_redis()


@pytest.fixture(params=[1, 4], ids=["one-shard", "four-shards"])
def store(server: Redis, request: pytest.FixtureRequest) -> Iterator[Backend]:
    with closing(backends.open(f"{server.url}?shards={request.param}")) as opened:
        assert opened.counts() == {}
        yield opened


def leave(server: Redis, room: int) -> None:
    server.command("CONFIG", "SET", "maxmemory", int(server.facts("INFO", "memory")["used_memory"]) + room)


def stored(store: Backend) -> set[str]:
    found, cursor = set[str](), None
    while True:
        page = store.find(Filter(limit=500, cursor=cursor))
        found |= {job.id for job in page.jobs}
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_of_merged_posts_those_that_were_accepted_are_201(server: Redis, store: Backend) -> None:
    async def all_at_once() -> list[Any]:
        async with falcon.testing.ASGIConductor(rest.build(Service(store))) as web:
            posts = (web.simulate_post("/api/v1/jobs", json=BODY, host="localhost") for _ in range(JOBS))
            return await asyncio.gather(*posts)

    # Given a store with room for a part of a batch
    leave(server, ROOM)
    # When many post a job at once
    answers = asyncio.run(all_at_once())
    # Then some are accepted and the others told to come again, and the store has the former and no others
    made = {answer.json["id"] for answer in answers if answer.status_code == 201}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert (len(made) + len(refused), bool(made), bool(refused)) == (JOBS, True, True)
    assert {answer.headers["Retry-After"] for answer in refused} == {"5"}
    assert all("is full" in answer.json["detail"] for answer in refused)
    assert stored(store) == made


def test_of_a_batch_those_that_were_accepted_are_told(server: Redis, store: Backend) -> None:
    # Given a store with room for a part of a batch, one of whose jobs it has already
    web = falcon.testing.TestClient(rest.build(Service(store)))
    first = {**BODY, "id": "first"}
    assert web.simulate_post("/api/v1/jobs", json=first, host="localhost").status_code == 201
    leave(server, ROOM)
    # When it is sent
    answer = web.simulate_post("/api/v1/jobs/batch", json={"jobs": [first, {}] + [BODY] * JOBS}, host="localhost")
    # Then each of its jobs is answered by what became of it
    assert answer.status_code == 200, answer.text
    items = answer.json["items"]
    assert [item["outcome"] for item in items[:2]] == ["duplicate", "invalid"]
    made = {item["id"] for item in items if item["outcome"] == "created"}
    refused = [item for item in items if item["outcome"] == "unavailable"]
    assert (len(made) + len(refused), bool(made), bool(refused)) == (JOBS, True, True)
    assert all(item["code"] == 503 and "is full" in item["error"] for item in refused)
    assert (answer.json["created"], answer.json["duplicates"], answer.json["refused"]) == (len(made), 1, len(refused) + 1)
    assert stored(store) == made | {"first"}
    # And one of which nothing is accepted is refused as a whole
    leave(server, -1_000_000)
    assert web.simulate_post("/api/v1/jobs/batch", json={"jobs": [BODY] * 3}, host="localhost").status_code == 503
