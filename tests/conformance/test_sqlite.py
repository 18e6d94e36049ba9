"""What only the embedded storage has: a disk that can be full, writers that take turns, kills, forks, its own plans."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from lab import Target, new, until
from msgspec import Raw

from gotask import clock
from gotask.backends import sqlite
from gotask.backends.sqlite import bell, sql
from gotask.backends.sqlite.link import Links
from gotask.backends.sqlite.schema import VERSION
from gotask.errors import BackendDown, NotConfigured
from gotask.model import NewJob, Queue, Settlement
from gotask.states import Event, State


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """These tests are of one storage, whatever the suite runs on."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def store(url: str) -> Iterator[sqlite.Sqlite]:
    made = sqlite.open(url)
    yield made
    made.close()


def integrity(path: Path) -> str:
    db = apsw.Connection(str(path))
    answer = str(db.pragma("integrity_check"))
    db.close()
    return answer


def test_a_file_of_a_newer_version_is_refused(store: sqlite.Sqlite, url: str, tmp_path: Path) -> None:
    store.close()
    db = apsw.Connection(str(tmp_path / "jobs.db"))
    db.pragma("user_version", VERSION + 1)
    db.close()
    with pytest.raises(NotConfigured, match="newer GoTask"):
        sqlite.open(url)


def synchronous(store: sqlite.Sqlite) -> int:
    """How this thread's last commit was written: 1 is NORMAL, 2 FULL."""
    with store._links.read() as db:
        assert db.pragma("journal_mode") == "wal"
        return int(db.pragma("synchronous"))


def test_what_was_accepted_or_ended_is_synced_and_a_lease_is_not(store: sqlite.Sqlite) -> None:
    store.enqueue_many([NewJob(type="t")])
    assert synchronous(store) == 2
    [job] = store.lease({"default": 1}, "node", 30.0)
    assert synchronous(store) == 1
    assert store.settle_many([Settlement(job.id, job.lease, Event.ACK)]) == [True]
    assert synchronous(store) == 2


def test_after_a_reboot_lease_numbers_go_on_above_any_that_was_lost(
    store: sqlite.Sqlite, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lease, which the disk may not know of
    store.enqueue_many([NewJob(type="t")] * 2)
    [before] = store.lease({"default": 1}, "node", 30.0)
    store.close()
    # When the machine was started anew
    monkeypatch.setattr(clock, "boot_id", lambda: "another boot")
    again = sqlite.open(url)
    # Then the next number is far above, also above those that the loss of power took back
    [after] = again.lease({"default": 1}, "node", 30.0)
    assert after.lease > before.lease + 100_000
    again.close()
    # And within one boot the numbers go on by one
    again = sqlite.open(url)
    again.enqueue_many([NewJob(type="t")])
    assert again.lease({"default": 1}, "node", 30.0)[0].lease == after.lease + 1
    again.close()


def test_an_engine_that_can_corrupt_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(NotConfigured, match=r"3\.51\.3"):
        sqlite.open(url)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, url: str) -> None:
    (tmp_path / "jobs.db").write_bytes(b"precious letters" * 1000)
    with pytest.raises(BackendDown, match="no GoTask database"):
        sqlite.open(url)
    assert (tmp_path / "jobs.db").read_bytes() == b"precious letters" * 1000


def test_a_full_disk_is_named_and_loses_nothing(store: sqlite.Sqlite, tmp_path: Path) -> None:
    # Given a running job, and a store that may not grow
    store.enqueue_many([new(id="j")])
    (job,) = store.lease({"default": 1}, "n", 60.0)
    with links(store).read() as db:
        pages = db.pragma("page_count")
        db.pragma("max_page_count", pages + 20)
    # When it is filled
    accepted: list[str] = []
    with pytest.raises(BackendDown, match=r"disk that holds .*jobs\.db is full"):
        fill(store, accepted)
    # Then all that was accepted is there, what runs can end, and more is accepted once there is room
    assert accepted
    assert None not in store.get_many(accepted)
    assert store.settle_many([Settlement("j", job.lease, Event.ACK)]) == [True]
    with links(store).read() as db:
        db.pragma("max_page_count", pages + 2000)
    assert store.enqueue_many([new()])[0].outcome == "created"
    assert integrity(tmp_path / "jobs.db") == "ok"


def fill(store: sqlite.Sqlite, accepted: list[str]) -> None:
    """Enqueue until the store refuses."""
    for _ in range(1000):
        accepted += [
            answer.job.id for answer in store.enqueue_many([new(payload=Raw(b'"%s"' % (b"x" * 999))) for _ in range(20)])
        ]


def links(store: sqlite.Sqlite) -> Links:
    return store._links


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        store = sqlite.open(f"sqlite:///{disk}/jobs.db")
        accepted: list[str] = []
        with pytest.raises(BackendDown, match="full"):
            fill(store, accepted)
        assert None not in store.get_many(accepted)
        store.close()
        assert integrity(disk / "jobs.db") == "ok"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WRITER = """
import sys
from gotask.backends import open
from gotask.model import NewJob
store = open(sys.argv[1])
n = 0
while True:
    jobs = [NewJob(id=f"{sys.argv[2]}-{n + k}", type="noop") for k in range(500)]
    store.enqueue_many(jobs)
    n += 500
    print(n, flush=True)
"""


def test_a_killed_writer_breaks_nothing_and_holds_nobody_up(store: sqlite.Sqlite, url: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for number in range(4):
        # Given a process that enqueues without a pause
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(number)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert writer.stdout is not None
        answered = [int(writer.stdout.readline()) for _ in range(3)]
        # When it is killed somewhere within its next batches
        threading.Event().wait(random.random() * 0.01)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        answered += [int(line) for line in rest.split() if rest.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        # Then everything answered is there, batches are whole, and others write at once
        assert None not in store.get_many([f"{number}-{n}" for n in range(max(answered))])
        assert store.enqueue_many([new()])[0].outcome == "created"
        assert (sum(store.counts().values()) - number - 1) % 500 == 0
    assert integrity(tmp_path / "jobs.db") == "ok"


HOG = """
import sys
from gotask.backends import open
from gotask.model import Queue
store = open(sys.argv[1])
while True:
    store.put(Queue(name=sys.argv[2]))  # its version counts the turns it had
"""


def test_busy_writers_let_others_in(store: sqlite.Sqlite, url: str) -> None:
    # Given two processes that write without a pause
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    hogs = [subprocess.Popen([sys.executable, "-c", HOG, url, f"hog{n}"], env=env) for n in range(2)]

    def turns() -> int:
        return sum(record.version for record in store.all(Queue) if record.name.startswith("hog"))

    try:
        until(lambda: len([record for record in store.all(Queue) if record.version > 5]) == 2, "both are at work")
        # When a third writes now and then
        waited = []
        for n in range(60):
            before = turns()
            store.put(Queue(name=f"guest{n}"))
            waited.append(turns() - before)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    # Then it waits for a few turns of the others, never for many
    waited.sort()
    assert waited[len(waited) // 2] <= 5
    assert waited[-1] <= 25


def test_a_writer_that_is_stopped_is_reported_in_time(url: str) -> None:
    # Given a process that holds the turn and does not go on
    slow, quick = sqlite.open(url), sqlite.open(f"{url}?timeout=0.1")
    with links(slow).write(), pytest.raises(BackendDown, match=r"0\.1 s"):
        quick.enqueue_many([new()])
    # Then others go on once it did
    assert quick.enqueue_many([new()])[0].outcome == "created"
    slow.close()
    quick.close()


def test_a_forked_child_and_its_parent_both_go_on(store: sqlite.Sqlite, tmp_path: Path) -> None:
    # Given a store that is in use
    store.enqueue_many([new(id="before")])
    watch = store.watch(["queue:default"])
    # When the process forks, and both sides use it
    pid = os.fork()
    if pid == 0:
        inherited = [
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")
        ]
        ok = not [name for name in inherited if name.startswith(str(tmp_path)) and "-bell" not in name]
        ok = ok and all(store.enqueue_many([new(id=f"child{n}")])[0].outcome == "created" for n in range(50))
        os._exit(0 if ok and store.get_many(["before"])[0] else 1)
    for n in range(50):
        assert store.enqueue_many([new(id=f"parent{n}")])[0].outcome == "created"
    _, status = os.waitpid(pid, 0)
    # Then nothing is lost, and bells ring across
    assert status == 0
    assert store.counts() == {("default", State.PENDING): 101}
    assert watch.wait(5.0) == {"queue:default"}
    assert integrity(tmp_path / "jobs.db") == "ok"


def test_a_listener_that_was_away_for_long_looks_for_itself(
    store: sqlite.Sqlite, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a listener that did not listen for so long that nobody rings for it any more
    store.enqueue_many([new(id="j")])
    watch = store.watch(["job:j"])
    later = bell.boottime() + 3600
    monkeypatch.setattr(bell, "boottime", lambda: later)
    other = sqlite.open(url)
    assert other.move_many(["j"], Event.CANCEL) == [True]
    # When it listens again, then it is sent to look
    assert watch.wait(0.0) == {"job:j"}
    assert watch.wait(0.0) == set()
    other.close()


def test_connections_of_ended_threads_are_closed(store: sqlite.Sqlite) -> None:
    for _ in range(20):
        thread = threading.Thread(target=store.counts)
        thread.start()
        thread.join()
    assert len(links(store)._links) <= 2


def test_counts_are_those_of_the_table(store: sqlite.Sqlite) -> None:
    # Given a long random history, with duplicates, fences and endings of every kind
    dice = random.Random(7)
    running = []
    for n in range(160):
        store.enqueue_many([new(id=f"j{dice.randrange(900)}", queue=dice.choice("ab")) for _ in range(dice.randrange(6))])
        running += store.lease({"a": dice.randrange(4), "b": dice.randrange(4)}, "n", 60.0)
        dice.shuffle(running)
        ends = [
            Settlement(j.id, j.lease + (dice.random() < 0.1), dice.choice(list(Event)[1:7]), queue=dice.choice((None, "dead")))
            for j in running[:5]
        ]
        del running[:5]
        store.settle_many(ends)
        store.move_many([f"j{dice.randrange(900)}" for _ in range(3)], dice.choice((Event.CANCEL, Event.REVIVE)))
        store.drop_many([f"j{dice.randrange(900)}"])
        store.tick(dice.randrange(1, 20))
        if n % 20 == 0:
            # Then at each time, what is kept is what is there
            with links(store).read() as db:
                real = {
                    (queue, State(status)): n
                    for queue, status, n in db.execute("SELECT queue, status, count(*) FROM jobs GROUP BY 1, 2")
                }
                assert db.execute("SELECT count(*) FROM jobs").get == db.execute("SELECT count(*) FROM bodies").get
            assert store.counts() == real


@pytest.mark.parametrize(
    "statement", ["FIRST", "OLDEST_OF", "DUE", "NEXT_DUE", "LEASE_SOME", "ACK_RANGE", "BY_ID", "KEY_HOLDER"]
)
def test_the_hot_statements_use_their_indexes(store: sqlite.Sqlite, statement: str) -> None:
    text = getattr(sql, statement)
    bound = max(int(number or 1) for number in re.findall(r"\?(\d*)", text) or ["0"])
    with links(store).read() as db:
        plan = [str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * bound)]
    assert not [step for step in plan if "TEMP B-TREE" in step]
    assert not [step for step in plan if step.startswith("SCAN") and "USING" not in step and "carray" not in step]


@pytest.mark.parametrize("state", [state for state in State if state not in (State.PENDING, State.SUCCESS)])
def test_what_is_off_the_usual_way_is_listed_by_an_index(store: sqlite.Sqlite, state: State) -> None:
    with links(store).read() as db:
        text = sql.page([sql.in_state(state)])
        plan = " ".join(str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {text}", (50, 0)))
    assert "SCAN j" not in plan
    assert "USING INDEX due" in plan if state is State.RUNNING else "USING INDEX rare" in plan


def test_a_target_of_ones_own_needs_a_url() -> None:
    with pytest.raises(pytest.UsageError, match="--backend-url"):
        Target.of("pkg.mod:open", "")
