"""How long what has ended is remembered, and counted, when clocks are astray. Of this storage alone."""

import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from lab import Clock, new

from gotask.backends import postgres
from gotask.model import Became, Settlement
from gotask.states import DAY_S, Event, State
from tests.servers.fixtures import Servers
from tests.servers.postgres import Postgres


@pytest.fixture
def server(servers: Servers) -> Iterator[Postgres]:
    yield servers.postgres
    servers.postgres.command("DROP SCHEMA IF EXISTS endings CASCADE")


def test_a_job_completed_after_the_clock_was_far_ahead_is_remembered(server: Postgres) -> None:
    # Given a server whose clock was far ahead while a node ticked
    url = f"{server.url}?schema=endings"
    with closing(postgres.open(url, clock=lambda: time.time() + 400 * DAY_S)) as ahead, closing(postgres.open(url)) as store:
        store.enqueue_many([new(id="old")])
        store.move_many(["old"], Event.CANCEL)
        assert ahead.tick().pruned == 1
        # When a job is completed in a transaction of its task's own
        store.enqueue_many([new(id="j")])
        (job,) = store.lease({"default": 1}, "node-1", 30.0)
        with psycopg.connect(server.url) as link:
            store.joined(link).complete("j", job.lease, b"1")
        # Then it is seen
        assert store.completions([("j", job.lease)]) == [Became.DONE]
        assert [found and found.status for found in store.get_many(["old", "j"])] == [None, State.SUCCESS]
        assert store.enqueue_many([new(id="j")])[0].outcome == "duplicate"


def test_a_deleted_job_is_not_forgotten_twice(server: Postgres) -> None:
    # Given a finished job that was counted by the minute, and is deleted when that is near
    clock = Clock()
    with closing(postgres.open(f"{server.url}?schema=endings", clock)) as store:
        store.enqueue_many([new(id="a")])
        (job,) = store.lease({"default": 1}, "node-1", 30.0)
        assert store.settle_many([Settlement("a", job.lease, Event.ACK, due_in=7210.0)]) == [True]
        store._server.call("fold", store._at())
        clock.now += 7200.0
        assert store.drop_many(["a"]) == [True]
        # Then no tick has forgotten less than nothing
        pruned = []
        for _ in range(4):
            clock.now += 30.0
            pruned.append(store.tick().pruned)
        assert min(pruned) == 0
        assert store.counts() == {}
