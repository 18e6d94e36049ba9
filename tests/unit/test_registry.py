"""Nodes in the store's records: who is proved dead, and whose business that is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.clock import boot_id, from_epoch, now
from gotask.model import Job, NewJob, Worker
from gotask.node.heldup import HeldUp
from gotask.node.notices import Notices
from gotask.node.registry import FORGET_S, LifeLine, Registry, can_be_had, new_owner
from gotask.states import State


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    backend = backends.open(f"sqlite:///{tmp_path}/jobs.db")
    yield backend
    backend.close()


class Life:
    """A node of this machine with a running job, whose record differs in `fields` from what it should be."""

    def __init__(self, store: Backend, folder: Path, name: str, **fields: str) -> None:
        self.line = LifeLine(folder, new_owner(name))
        self.owner = self.line.path.name.removesuffix(".lock")
        known = {"boot_id": boot_id(), "lock": str(self.line.path)} | fields
        store.put(Worker(name=self.owner, seen_at=from_epoch(now()), **known))  # type: ignore[arg-type]
        store.enqueue_many([NewJob(type="t")])
        [self.job] = store.lease({"default": 1}, self.owner, 600.0)
        self._alive = True

    def die(self) -> None:
        if self._alive:
            os.close(self.line._fd)
        self._alive = False

    def found(self, store: Backend) -> Job:
        job = store.get_many([self.job.id])[0]
        assert job is not None
        return job


class Asked:
    """A store that remembers which Worker records it was asked for."""

    def __init__(self, store: Backend) -> None:
        self._store = store
        self.names: list[str] = []

    def __getattr__(self, name: str) -> object:
        assert name != "all", "the records of all nodes were read"
        return getattr(self._store, name)

    def get(self, kind: type[Worker], name: str) -> Worker | None:
        self.names.append(name)
        return self._store.get(kind, name)


def held_up(store: Backend) -> HeldUp:
    return HeldUp(store, Notices(), lambda: None)


def registry(store: object, folder: Path) -> Registry:
    lock = folder.resolve() / "third.lock"
    return Registry(store, Worker(name="third", boot_id=boot_id(), lock=str(lock)))  # type: ignore[arg-type]


def test_orphans_are_given_back_only_on_proof_of_death(store: Backend, tmp_path: Path) -> None:
    # Given a node that is alive and one whose lock can be had, each with a running job
    alive, dead = (Life(store, tmp_path / "nodes", name) for name in ("alive", "dead"))
    dead.die()
    # When a third one looks around, again and again
    asked = Asked(store)
    third = registry(asked, tmp_path / "nodes")
    late = held_up(store)
    assert [third.give_back_orphans(late) for _ in range(3)] == [1, 0, 0]
    # Then the dead one's job waits again, nothing burned, its record and its file are gone, and the other's still runs
    assert (alive.found(store).status, dead.found(store).status) == (State.RUNNING, State.PENDING)
    assert dead.found(store).crashes == 0
    assert [worker.name for worker in store.all(Worker)] == [alive.owner]
    assert (alive.line.path.exists(), dead.line.path.exists()) == (True, False)
    # And the store was asked for the dead one alone, once
    assert asked.names == [dead.owner]
    alive.die()


def test_a_dead_node_of_another_store_is_none_of_its_business(store: Backend, tmp_path: Path) -> None:
    # Given a dead node that this store has never heard of
    line = LifeLine(tmp_path / "nodes", "stranger")
    os.close(line._fd)
    asked = Asked(store)
    third = registry(asked, tmp_path / "nodes")
    # When it is looked at, again and again
    late = held_up(store)
    assert [third.give_back_orphans(late) for _ in range(3)] == [0, 0, 0]
    # Then its proof of death is left for those who need it, and the store was asked once
    assert line.path.exists()
    assert asked.names == ["stranger"]


@pytest.mark.parametrize("fields", [{"boot_id": "another machine"}, {"lock": "/elsewhere/x.lock"}, {"lock": ""}])
def test_a_record_that_names_another_machine_or_file_proves_nothing(
    store: Backend, tmp_path: Path, fields: dict[str, str]
) -> None:
    node = Life(store, tmp_path / "nodes", "node", **fields)
    node.die()
    assert registry(store, tmp_path / "nodes").give_back_orphans(held_up(store)) == 0
    assert node.found(store).status is State.RUNNING
    assert node.line.path.exists()


def test_a_lock_has_its_name_only_once_it_is_held(tmp_path: Path) -> None:
    line = LifeLine(tmp_path / "nodes", "a.b-1")
    assert [path.name for path in (tmp_path / "nodes").iterdir()] == ["a.b-1.lock"]
    assert not can_be_had(line.path)
    os.close(line._fd)
    assert can_be_had(line.path)


def test_a_node_that_nobody_has_seen_for_a_day_is_forgotten(store: Backend, tmp_path: Path) -> None:
    # Given nodes of other machines, one of which was last seen long ago
    store.put(Worker(name="fresh", seen_at=from_epoch(now())))
    store.put(Worker(name="old", seen_at=from_epoch(now() - FORGET_S - 1)))
    # When somebody cleans up, then only the other is still listed
    registry(store, tmp_path).forget_unseen()
    assert [worker.name for worker in store.all(Worker)] == ["fresh"]


def test_what_is_in_hand_is_kept_by_its_lease(store: Backend) -> None:
    # Given two running jobs of one node, of which it holds one, and the other under an older lease
    store.enqueue_many([NewJob(type="t", id="held"), NewJob(type="t", id="stray")])
    leases = {job.id: job.lease for job in store.lease({"default": 2}, "node", 600.0)}
    # When all else is given back
    keep = {("held", leases["held"]), ("stray", 0)}
    count = Registry(store, Worker(name="node")).release("node", "a test", held_up(store), keep)
    # Then only the one is still its own
    held, stray = store.get_many(["held", "stray"])
    assert held is not None
    assert stray is not None
    assert (count, held.status, stray.status) == (1, State.RUNNING, State.PENDING)
