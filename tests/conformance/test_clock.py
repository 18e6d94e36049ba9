"""A clock that was wrong for a while, and was put right: nothing that ends afterwards is lost over it."""

from typing import Final

import pytest
from lab import Lab, new

from gotask.model import Filter
from gotask.states import DAY_S, FINISHED, State

AHEAD_S: Final = 400 * DAY_S  #: longer than anything is kept


@pytest.mark.parametrize("state", sorted(FINISHED), ids=lambda state: state.value)
def test_what_ends_after_the_clock_was_far_ahead_is_remembered(lab: Lab, state: State) -> None:
    # Given a store that ticked while its clock was far ahead, which is right again
    lab.in_state(State.SUCCESS, "old")
    lab.advance(AHEAD_S)
    lab.tick_all()
    lab.advance(-AHEAD_S)
    assert lab.store.get_many(["old"]) == [None]
    # When a job ends
    job = lab.in_state(state)
    # Then everybody sees it, and its id is known
    assert lab.store.find(Filter(status=state)).jobs == lab.store.find(Filter()).jobs == [job]
    assert lab.store.counts() == {("default", state): 1}
    assert [answer.outcome for answer in lab.store.enqueue_many([new(id="j", expires_at=job.expires_at)])] == ["duplicate"]
    # And it is counted for as long as it is seen
    for seconds in (100.0, AHEAD_S, AHEAD_S):
        lab.advance(seconds)
        lab.tick_all()
        assert sum(lab.store.counts().values()) == len(lab.store.find(Filter()).jobs)
    assert lab.store.counts() == {}
