"""Tasks that complete their own jobs in their own transactions, on real nodes: each effect once, whatever is killed when."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from gotask import GoTask, backends
from gotask.backends import Backend
from gotask.model import Job
from gotask.states import LIVE, Event, State
from tests.crash.harness import SCALE, Node, drained, enqueue, fetch, kill, node, until
from tests.servers.fixtures import Servers

APP = "tests.crash.completing:app"
MODES = {"main thread": ("-c", "1", "--processes", "1"), "threads and loop": ("-c", "8", "--processes", "1")}


@pytest.fixture
def storage(servers: Servers) -> Iterator[str]:
    name = f"test-{uuid4().hex[:8]}"
    url = f"{servers.postgres.url}?schema={name}"
    with closing(backends.open(url)) as store:
        store.tick()  # makes the schema, and the tables of today
    servers.postgres.command(f'CREATE TABLE "{name}".effects (job text, attempt integer)')
    yield url
    servers.postgres.command(f'DROP SCHEMA "{name}" CASCADE')


@pytest.fixture
def backend(storage: str) -> Iterator[Backend]:
    with closing(backends.open(storage)) as store:
        yield store


def effects(storage: str) -> Counter[str]:
    """How many rows each job has left behind."""
    url, _, schema = storage.partition("?schema=")
    with psycopg.connect(url) as link:
        found = link.execute(f'SELECT job, count(*) FROM "{schema}".effects GROUP BY job').fetchall()  # type: ignore[arg-type]
    return Counter(dict(found))


def one(backend: Backend, how: str, task: str = "pay") -> str:
    [job_id] = enqueue(backend, [(task, json.dumps({"n": 7, "how": how}))])
    return job_id


def ended(backend: Backend, storage: str, job_id: str) -> Job:
    """The job, once it has ended well with the result it was completed with, and one effect."""
    drained(backend, 30)
    job = fetch(backend, [job_id])[job_id]
    assert (job.status, bytes(job.result or b"")) == (State.SUCCESS, b'{"n":7}'), job
    assert effects(storage)[job_id] == 1
    return job


def told(running: Node, words: str) -> int:
    return running.log.read_text().count(words)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["pay", "apay"])
def test_a_job_is_done_with_its_tasks_own_transaction(
    mode: str, task: str, storage: str, backend: Backend, tmp_path: Path
) -> None:
    with node(storage, tmp_path, *MODES[mode], app=APP) as running:
        # Given somebody who waits for the result
        with GoTask(storage) as app:
            begun = time.monotonic()
            handle = app.enqueue(task, {"n": 7, "how": ""})
            assert handle.result(timeout=20) == {"n": 7}
            assert time.monotonic() - begun < 15
        # Then it is done once, at the first attempt, and the node calls nothing fenced
        job = ended(backend, storage, handle.id)
        assert (job.retry_count, job.crashes, len(job.attempts or [])) == (0, 0, 0)
        assert told(running, "taken away") == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("rollback", "the transaction in which the task completed its job did not commit: it was rolled back, or never"),
        ("savepoint", "the transaction in which the task completed its job did not commit: it was rolled back, or never"),
        ("forget", "the transaction in which the task completed its job did not commit: it was"),
        ("raise before", "RuntimeError: before the commit"),
    ],
)
def test_what_did_not_commit_is_tried_again(how: str, says: str, storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1", app=APP):
        job = ended(backend, storage, one(backend, how)) if how != "savepoint" else None
        if job is None:  # its row is committed, and only its completion is not
            job_id = one(backend, how)
            drained(backend, 30)
            job = fetch(backend, [job_id])[job_id]
            assert (job.status, effects(storage)[job_id]) == (State.SUCCESS, 2)
        assert (job.retry_count, job.crashes) == (1, 0)
        [attempt] = job.attempts or []
        assert says in (attempt.error or "")


def test_what_a_coroutine_left_open_as_it_raised_ends_with_it(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a worker that has nothing else to do, so that Python collects no garbage there
    with node(storage, tmp_path, "-c", "1", app=APP) as running:
        ended(backend, storage, one(backend, "raise before", "apay"))
        assert told(running, "commit it before the task returns") == 0


def test_a_task_may_try_its_transaction_again(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1", app=APP):
        assert ended(backend, storage, one(backend, "again")).retry_count == 0


def test_what_is_raised_after_the_commit_counts_for_nothing(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1", app=APP) as running:
        assert ended(backend, storage, one(backend, "raise after")).retry_count == 0
        until("the node says so", lambda: told(running, "what came after that counts for nothing: failed") == 1, 5)


def test_an_open_transaction_stops_nobody_else(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a task that returns, and leaves open the transaction in which it completed its job
    with node(storage, tmp_path, "-c", "1", app=APP) as running:
        job_id = one(backend, "open")
        until("the node notices", lambda: told(running, "commit it before the task returns") == 1, 20)
        # Then others run, and the job is nobody else's
        [other] = enqueue(backend, [("pay", json.dumps({"n": 8, "how": ""}))])
        until("another is done", lambda: fetch(backend, [other])[other].status is State.SUCCESS, 5)
        assert fetch(backend, [job_id])[job_id].status is State.RUNNING
        assert told(running, "The store does not answer") == 0
        # And once it has ended without a commit, the job is tried again for that reason
        enqueue(backend, [("let_go", "{}")])
        job = ended(backend, storage, job_id)
        assert told(running, "The store does not answer") == 0
        assert "was still open when the task returned; commit it before" in str((job.attempts or [])[0].error)


def test_the_next_dispatcher_knows_of_an_open_transaction(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a dispatcher that has heard of the end of a run, and dies before the transaction of that run ends
    with node(storage, tmp_path, "-c", "1", app=APP) as running:
        job_id = one(backend, "open")
        until("the node notices", lambda: told(running, "commit it before the task returns") == 1, 20)
        kill(running.of("dispatcher")[0].pid)
        until("another took over", lambda: told(running, "Took over 1 jobs") == 1, 20)
        # When it ends without a commit, then the job is tried again
        enqueue(backend, [("let_go", "{}")])
        assert ended(backend, storage, job_id).retry_count == 1


def test_what_lapsed_while_its_transaction_was_open_is_no_hurry(
    storage: str, servers: Servers, backend: Backend, tmp_path: Path
) -> None:
    # Given a transaction that is open for longer than a lease after its task returned
    with node(storage, tmp_path, "-c", "1", "--lease", "1", app=APP):
        job_id = one(backend, "open")
        time.sleep(3)
        asked = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        [(before,)] = servers.postgres.command(asked)
        time.sleep(4)
        [(after,)] = servers.postgres.command(asked)
        assert fetch(backend, [job_id])[job_id].status is State.RUNNING
        # Then the store is not asked all the time, and the job runs again when it has ended
        assert after - before < 4 * 40
        enqueue(backend, [("let_go", "{}")])
        ended(backend, storage, job_id)


def test_a_long_transaction_is_waited_for(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a task that takes longer than a lease between completing its job and the commit
    with node(storage, tmp_path, "-c", "1", "--lease", "1", app=APP) as running:
        assert ended(backend, storage, one(backend, "slow")).crashes == 0
        assert told(running, "The store does not answer") == 0


@pytest.mark.parametrize("how", ["killed before", "killed after"])
def test_a_worker_killed_around_the_commit(how: str, storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1", app=APP) as running:
        job = ended(backend, storage, one(backend, how))
        # Then before it nothing was written and the job ran again; after it nothing did
        assert job.crashes == (1 if how == "killed before" else 0)
        until("the node says what became of it", lambda: told(running, "jobs in its hands: 1") > 0, 5)
        assert running.stop() == 0
        assert told(running, "taken away") == 0
        assert told(running, "The store does not answer") == 0


def test_a_run_that_lost_its_lease_writes_nothing(storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given a run whose job is taken away while its node thinks that it holds it, and which swallows the error
    with node(storage, tmp_path, "-c", "1", app=APP) as running:
        job_id = one(backend, "late")
        until("it runs", lambda: fetch(backend, [job_id])[job_id].status is State.RUNNING, 20)
        job = fetch(backend, [job_id])[job_id]
        from gotask.model import Settlement

        assert backend.settle_many([Settlement(job_id, job.lease, Event.SNOOZE, due_in=600)]) == [True]
        # Then it is not this node's to settle, and none of its transaction is kept, though it was told to commit
        until("the node says so", lambda: told(running, "was taken away from its run") == 1, 20)
        job = fetch(backend, [job_id])[job_id]
        assert (job.status, job.retry_count, effects(storage)[job_id]) == (State.SCHEDULED, 0, 0)


def test_what_is_no_connection_fails_the_run(storage: str, backend: Backend, tmp_path: Path) -> None:
    with node(storage, tmp_path, "-c", "1", app=APP):
        [job_id] = enqueue(backend, [("astray", "{}")])
        drained(backend, 30)
        job = fetch(backend, [job_id])[job_id]
        assert job.status is State.FAILED
        assert "connection: it is a str; give one of psycopg 3" in (job.error or "")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["worker", "dispatcher", "node"])
def test_each_effect_once_in_a_storm_of_kills(victim: str, storage: str, backend: Backend, tmp_path: Path) -> None:
    # Given many short jobs, two nodes, and somebody who kills
    count = int((2400 if victim == "node" else 1200) * SCALE)  # enough to outlast the kills
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    mishaps = ["", "", "", "rollback", "raise before", "raise after", "again"]
    ids = enqueue(
        backend,
        [("pay" if n % 3 else "apay", json.dumps({"n": n, "how": chance.choice(mishaps)})) for n in range(count)],
    )
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir(mode=0o700)
    kills = 0
    with (
        node(storage, folders[0], "-c", "4", "--processes", "2", "--lease", "3", app=APP) as first,
        node(storage, folders[1], "-c", "2", "--processes", "2", "--lease", "3", app=APP) as second,
    ):
        deadline = time.monotonic() + 150
        while any(backend.counts().get(("default", state), 0) for state in LIVE):
            assert time.monotonic() < deadline, backend.counts()
            time.sleep(chance.uniform(0.05, 0.3))
            running = chance.choice([first, second])
            if victim == "node":
                if kills < 6:
                    for pid in running.family():
                        kill(pid, signal.SIGKILL)
                    running.restart()
                    time.sleep(1.5)
                    kills += 1
            elif kills < 120 * SCALE and (alive := running.of(victim)):
                kills += kill(chance.choice(alive).pid)
        # Then each job is done, and left exactly one row; but one that was hit three times in a row is poison, and left none
        found, jobs = effects(storage), fetch(backend, ids)
        assert {(job.status, job.reason) for job in jobs.values()} <= {(State.SUCCESS, None), (State.FAILED, "poison")}
        done = {id: int(jobs[id].status is State.SUCCESS) for id in ids}
        wrong = {id: found[id] for id in ids if found[id] != done[id]}
        assert not wrong, f"seed {seed}: {len(wrong)} of {count} have other effects, such as {next(iter(wrong.items()))}"
        assert sum(done.values()) >= count - 3
        assert kills >= 5
