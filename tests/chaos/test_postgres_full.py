"""PostgreSQL whose disk is full: it takes no more jobs, and says when to come again; all that it has taken ends."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.states import FINISHED
from tests.chaos.producer import work
from tests.chaos.scale import so_many
from tests.chaos.test_stalls import served
from tests.chaos.witness import agreed, judge, runs
from tests.crash.harness import fetch, node, until
from tests.servers.fixtures import StartPostgres
from tests.servers.postgres import NOBODY, Postgres

pytestmark = pytest.mark.timeout(1800)
DISK = "40m"  #: two pieces of a log of PostgreSQL, and some
JOBS = 60
BATCH = 50


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk of its own, which the server may write to."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("a disk to fill needs root, and in CI its tests must run")
        pytest.skip("a disk to fill needs root")
    made = Path(tempfile.mkdtemp(prefix="gotask-disk-"))
    made.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(made)], check=True)
    try:
        own = made / "tables"
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made)], check=True)
        made.rmdir()


def fill(disk: Path) -> None:
    with (disk / "rubbish").open("ab", buffering=0) as rubbish, suppress(OSError):
        while True:
            rubbish.write(b"x" * 4096)


def put_tables_on(server: Postgres, disk: Path) -> None:
    server.command(f"CREATE TABLESPACE small LOCATION '{disk / 'tables'}'")
    server.command("ALTER SYSTEM SET default_tablespace = small")
    server.command("SELECT pg_reload_conf()")


def refused(store: Backend, taken: dict[str, int]) -> BackendDown:
    """Enqueue until the disk is full, whatever room is left in pages that exist; what it says then."""
    while True:
        batch = {f"more-{len(taken) + n}": len(taken) + n for n in range(BATCH)}
        try:
            store.enqueue_many([work(id, n, 0.0) for id, n in batch.items()])
        except BackendDown as error:
            return error
        taken |= batch


def test_a_full_disk(start_postgres: StartPostgres, disk: Path, tmp_path: Path) -> None:
    # Given a server whose tables lie on a small disk, a node with jobs running and queued, and an HTTP server
    server = start_postgres()
    put_tables_on(server, disk)
    with (
        closing(backends.open(server.url)) as store,
        node(server.url, tmp_path, "-c", "4", "--processes", "2") as running,
        served(tmp_path, server.url) as front,
    ):
        numbers: dict[str, int] = {}
        for cycle in range(so_many(1, 20)):
            taken = {f"taken-{cycle}-{n}": n for n in range(JOBS)}
            store.enqueue_many([work(id, n, 100.0) for id, n in taken.items()])
            # When it is full
            fill(disk)
            error = refused(store, taken)
            # Then an enqueue is refused by name, also over HTTP, with the time after which to come again
            assert error.refused, error
            assert "has no room" in str(error)
            assert error.retry_after == 5.0
            # so much that no page has room for it, by chance or compressed
            body = {"type": "work", "id": "refused", "payload": {"n": 1, "ms": 0, "pad": os.urandom(50_000).hex()}}
            answer = front.post("/api/v1/jobs", body)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
            assert "has no room" in answer.text
            # When there is room again, then all that was taken ends, each once, and nothing that was refused was made
            (disk / "rubbish").unlink()
            until("all that was taken has ended", lambda taken=taken: ended(store, list(taken)), 60.0)
            assert store.get_many(["refused"]) == [None]
            numbers |= taken
            judge(store, numbers, runs(running.witness))
            agreed(store)


def test_a_server_whose_log_does_not_fit_the_disk(start_postgres: StartPostgres, disk: Path) -> None:
    # Given a server whose log lies on a disk that will be full
    server = start_postgres()
    store = backends.open(f"{server.url}?timeout=2")
    with closing(store):
        taken = {"first": 0}
        store.enqueue_many([work("first", 0, 0.0)])
        server.end(signal.SIGINT)
        log = server.data / "pg_wal"
        shutil.copytree(log, disk / "wal")
        own(disk / "wal")
        shutil.rmtree(log)
        log.symlink_to(disk / "wal")
        server.start()
        # When it can write no more of it, then it ends, and an enqueue says that it cannot be reached
        fill(disk)
        error = refused(store, taken)
        assert any(words in str(error) for words in ("has no room", "cannot be reached", "did not answer")), error
        # And with room again it comes back with all that it had answered
        server.kill()
        (disk / "rubbish").unlink()
        server.start()
        assert set(fetch(store, list(taken))) == set(taken)
        assert store.enqueue_many([work("first", 0, 0.0)])[0].outcome == "duplicate"
        agreed(store)


def own(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)


def ended(store: Backend, ids: list[str]) -> bool:
    return all(job.status in FINISHED for job in fetch(store, ids).values())
