"""Text that no storage can keep is refused by the name of its field; a name that nothing can have names nothing."""

from collections.abc import Callable
from typing import Final

import pytest
from lab import LEASE_S, Lab, new

from gotask.errors import InvalidInput
from gotask.model import Beat, Filter, Worker
from gotask.states import Event, State

HALF: Final = "a\ud800z"  #: half a surrogate pair: Python has such text, and UTF-8 has none

ENTRIES: Final[dict[str, Callable[[Lab], object]]] = {
    "unique_key": lambda lab: lab.store.enqueue_many([new(id="fine"), new(id="bad", unique_key=HALF)]),
    "owner": lambda lab: lab.store.lease({"default": 1}, HALF, LEASE_S),
    "reason": lambda lab: lab.store.move_many(["j"], Event.CANCEL, HALF),
    "reason of an ending": lambda lab: lab.settle(lab.job("run"), Event.SNOOZE, due_in=1.0, reason=HALF),
    "error": lambda lab: lab.settle(lab.job("run"), Event.BURY, error=HALF),
    "note": lambda lab: lab.store.extend_many([Beat("run", lab.job("run").lease, 1.0, HALF)], LEASE_S),
    "name": lambda lab: lab.store.put(Worker(name=HALF)),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_text_that_no_storage_can_keep_is_refused_by_name(lab: Lab, what: str) -> None:
    # Given a job that runs and one that waits
    lab.running("run")
    lab.enqueue("j")
    # When somebody says what cannot be written down
    with pytest.raises(InvalidInput, match=rf"^{what.split()[0]}: it has half a surrogate pair"):
        ENTRIES[what](lab)
    # Then nothing has changed
    assert lab.store.counts() == {("default", State.PENDING): 1, ("default", State.RUNNING): 1}
    assert lab.store.get_many(["fine"]) == [None]
    assert not lab.job("run").progress
    assert lab.store.all(Worker) == []


@pytest.mark.parametrize("text", [HALF, "\0", "a\0b", "é"], ids=ascii)
@pytest.mark.parametrize("field", ["queue", "type", "worker_id", "unique_key"])
def test_a_filter_that_nothing_can_match_gives_an_empty_page(lab: Lab, field: str, text: str) -> None:
    lab.running("run")
    for status in (None, *State):
        page = lab.store.find(Filter(status=status, **{field: text}))  # type: ignore[arg-type]
        assert (page.jobs, page.next_cursor) == ([], None)


@pytest.mark.parametrize("text", ["\0", "a\\0b", "é"], ids=ascii)
def test_odd_text_that_can_be_kept_is_found_by_it(lab: Lab, text: str) -> None:
    lab.enqueue("key", unique_key=text)
    (job,) = lab.lease(owner=text)
    assert (job.unique_key, lab.job("key").worker_id) == (text, text)
    assert [found.id for found in lab.store.find(Filter(unique_key=text)).jobs] == ["key"]
    assert [found.id for found in lab.store.find(Filter(worker_id=text)).jobs] == ["key"]


@pytest.mark.parametrize("id", [HALF, "\0", "é"], ids=ascii)
def test_an_id_that_no_job_can_have_names_none(lab: Lab, id: str) -> None:
    lab.enqueue("j")
    assert lab.store.get_many([id, "j"]) == [None, lab.job("j")]
    assert lab.store.move_many([id], Event.CANCEL) == lab.store.move_many([id], Event.REVIVE) == [False]
    assert lab.store.drop_many([id, "j"]) == [False, True]
