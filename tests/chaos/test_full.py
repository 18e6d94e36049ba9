"""Redis at its maxmemory: it takes no more jobs, and says when to come again; all that it has taken ends, then it goes on."""

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import NewJob, Queue
from gotask.states import FINISHED, State
from tests.chaos.producer import work
from tests.chaos.scale import so_many
from tests.chaos.test_stalls import served
from tests.chaos.witness import judge, runs
from tests.crash.harness import fetch, node, until
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

pytestmark = pytest.mark.timeout(1800)
MEMORY = "20mb"
MARGIN = 1_000_000  #: bytes that Redis has more than it may, when it is full
BODY = 100_000  #: bytes of a job that fills
JOBS = 60


def fill(redis: Redis, store: Backend) -> list[str]:
    """Enqueue large jobs that nobody runs until Redis takes no more, then leave it less than it has; the ids of the jobs."""
    body = msgspec.Raw(msgspec.json.encode({"text": "x" * BODY}))
    made: list[str] = []
    while job := accepted(store, NewJob(type="echo_size", payload=body, queue="filler")):
        made.append(job)
    # else what comes and goes, such as the buffers of connections, makes room for a small job now and then
    redis.command("CONFIG", "SET", "maxmemory", int(redis.facts("INFO", "memory")["used_memory"]) - MARGIN)
    return made


def accepted(store: Backend, new: NewJob) -> str | None:
    """Its id, or None if the store is full."""
    try:
        (answer,) = store.enqueue_many([new])
    except BackendDown as error:
        if "is full" not in str(error):
            raise
        return None
    return answer.job.id


@pytest.mark.parametrize("shards", [1, 4])
def test_a_full_redis(start_redis: StartRedis, tmp_path: Path, shards: int) -> None:
    # Given a small Redis, a node with jobs running and queued, under a limit, and an HTTP server
    redis = start_redis(maxmemory=MEMORY, appendonly=True)
    url = f"{redis.url}?shards={shards}"
    numbers = {f"taken-{n}": n for n in range(JOBS)}
    with (
        closing(backends.open(url)) as store,
        node(url, tmp_path, "-c", "4", "--processes", "2", "--lease", "3") as running,
        served(tmp_path, url) as server,
    ):
        store.put(Queue(name="default", max_workers=3))
        for cycle in range(so_many(1, 10)):
            store.put(Queue(name="default", max_workers=3, paused=True))
            sent = {f"{id}-{cycle}": n for id, n in numbers.items()}
            store.enqueue_many([work(id, n, 100.0) for id, n in sent.items()])
            fillers = fill(redis, store)
            # When it is full
            store.put(Queue(name="default", max_workers=3))
            # Then an enqueue is refused by name, also over HTTP, with the time after which to come again
            with pytest.raises(BackendDown, match="is full") as refused:
                store.enqueue_many([work("refused", 1, 0.0)])
            assert refused.value.retry_after == 5.0
            answer = server.post("/api/v1/jobs", {"type": "work", "id": "refused", "payload": {"n": 1, "ms": 0}})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
            # And jobs can be waited for
            waited = next(iter(sent))
            store.watch([f"job:{waited}"]).close()
            assert server.client.get(f"/api/v1/jobs/{waited}/wait?timeout=20").status_code == 200
            # And what runs and what waits ends, each once
            until("all that was taken has ended", lambda sent=sent: ended(store, list(sent)), 30.0)
            judge(store, sent, [run for run in runs(running.witness) if run.job in sent])
            # And nothing that was refused was made
            assert store.get_many(["refused"]) == [None]
            assert {job.status for job in fetch(store, fillers).values()} == {State.PENDING}
            assert len(fetch(store, fillers)) == len(fillers)
            # When memory is freed, then it takes jobs again, and runs them
            half = len(fillers) // 2
            assert all(store.drop_many(fillers[:half]))
            assert store.enqueue_many([work(f"later-{cycle}", 1, 0.0)])[0].outcome == "created"
            until("a later job has ended", lambda cycle=cycle: ended(store, [f"later-{cycle}"]), 5.0)
            answer = server.post("/api/v1/jobs", {"type": "work", "id": f"posted-{cycle}", "payload": {"n": 1, "ms": 0}})
            assert answer.status_code == 201, answer.text
            until("the server is ready", lambda: server.client.get("/ready").status_code == 200, 5.0)
            store.drop_many([*fillers[half:], *sent])
            redis.command("CONFIG", "SET", "maxmemory", MEMORY)


def ended(store: Backend, ids: list[str]) -> bool:
    return all(job.status in FINISHED for job in fetch(store, ids).values())
