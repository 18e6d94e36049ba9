"""Records: small versioned documents, compared and set from several sides."""

import threading

from lab import Lab

from gotask.backends import Backend
from gotask.model import Queue, Worker


def test_a_record_comes_back_with_its_version(lab: Lab) -> None:
    # Given two kinds of one name
    queue = Queue(name="a", priority=4, rate_limit=2.5, dead_letter_queue="dead", max_retries=7)
    worker = Worker(name="a", host="h", pid=7, queues=["x"], seen_at=lab.at(0))
    assert lab.store.put(queue)
    assert lab.store.put(worker)
    # Then each kind has its own, as version 1, from another connection too
    stored = lab.another().get(Queue, "a")
    assert stored is not None
    assert (stored.version, stored.priority, stored.rate_limit, stored.max_retries) == (1, 4, 2.5, 7)
    assert lab.store.get(Worker, "a") == Worker(name="a", version=1, host="h", pid=7, queues=["x"], seen_at=lab.at(0))
    assert lab.store.get(Queue, "b") is None
    # And the one that was put is not changed by it
    assert queue.version == 0


def test_all_are_listed_by_name(lab: Lab) -> None:
    for name in ("b", "c", "a"):
        lab.store.put(Queue(name=name))
    assert [record.name for record in lab.store.all(Queue)] == ["a", "b", "c"]
    assert lab.store.all(Worker) == []


def test_a_put_with_a_version_holds_only_against_that_version(lab: Lab) -> None:
    # Given that there is none
    assert not lab.store.put(Queue(name="a"), 1)
    assert lab.store.put(Queue(name="a", weight=2), 0)
    assert not lab.store.put(Queue(name="a", weight=3), 0)
    # When two sides read version 1 and both write
    assert lab.store.put(Queue(name="a", weight=4), 1)
    assert not lab.another().put(Queue(name="a", weight=5), 1)
    # Then the first holds, and a put without a version always does
    stored = lab.store.get(Queue, "a")
    assert stored is not None
    assert (stored.version, stored.weight) == (2, 4)
    assert lab.store.put(Queue(name="a", weight=6))
    stored = lab.store.get(Queue, "a")
    assert stored is not None
    assert (stored.version, stored.weight) == (3, 6)


def test_a_drop_can_name_a_version(lab: Lab) -> None:
    assert not lab.store.drop(Queue, "a")
    lab.store.put(Queue(name="a"))
    assert not lab.store.drop(Queue, "a", 2)
    assert lab.store.drop(Queue, "a", 1)
    assert lab.store.get(Queue, "a") is None


def test_increments_from_many_sides_lose_none(lab: Lab) -> None:
    # Given a record that four threads count up by compare-and-set
    lab.store.put(Queue(name="a", max_workers=0))
    stores = [lab.another() for _ in range(4)]

    def count_up(store: Backend) -> None:
        done = 0
        while done < 25:
            found = store.get(Queue, "a")
            assert found is not None
            done += store.put(Queue(name="a", max_workers=found.max_workers + 1), found.version)

    threads = [threading.Thread(target=count_up, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    # Then every one of them counted
    found = lab.store.get(Queue, "a")
    assert found is not None
    assert (found.max_workers, found.version) == (100, 101)
