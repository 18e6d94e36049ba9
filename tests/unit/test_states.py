"""The tables of the state machine are whole, and everything that is printed from them is up to date."""

import re
from pathlib import Path

import pytest

from gotask.states import FINISHED, KEEP_S, LIVE, MEANING, ON_DUE, RULES, Event, State, mermaid, page, possible

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


@pytest.mark.parametrize("state", State)
def test_every_state_is_explained_and_has_a_due_row(state: State) -> None:
    assert MEANING[state].endswith(".")
    assert state in ON_DUE
    assert state == state.name  # the word on the wire


@pytest.mark.parametrize("event", Event)
def test_every_event_has_a_rule_that_leads_somewhere_else(event: Event) -> None:
    sources, to = RULES[event]
    assert sources
    assert len(set(sources)) == len(sources)
    assert to not in sources


def test_every_state_can_be_reached_and_left() -> None:
    # Given the states a job can begin in, When all rules and due rows are followed
    reached, todo = set(), {State.PENDING, State.SCHEDULED}
    while todo:
        state = todo.pop()
        reached.add(state)
        todo |= {row.to for row in RULES.values() if state in row.sources} | set(ON_DUE[state].to)
        todo -= reached

    # Then all are reached, and none is a trap: each is left when it is due, at last by being forgotten
    assert reached == set(State)
    for state, due in ON_DUE.items():
        assert state not in due.to
        assert bool(due.to) != (due.verb == "prune")


def test_finished_states_are_those_that_are_pruned_and_each_has_a_keeping_time() -> None:
    assert set(State) == FINISHED | LIVE
    assert not FINISHED & LIVE
    assert KEEP_S.keys() == FINISHED
    assert KEEP_S[State.FAILED] > KEEP_S[State.SUCCESS]


def test_only_a_running_job_is_ended_by_its_lease() -> None:
    for event in set(Event) - {Event.LEASE, Event.CANCEL, Event.REVIVE}:
        assert RULES[event].sources == (State.RUNNING,)
        assert RULES[event].to != State.RUNNING


def test_possible_is_the_rules_read_the_other_way() -> None:
    for state in State:
        for event in Event:
            assert (event in possible(state)) == (state in RULES[event].sources)
    assert possible(State.SUCCESS) == []


def test_the_picture_shows_every_arrow() -> None:
    # Given the arrows of the tables
    expected = {(source, row.to, event) for event, row in RULES.items() for source in row.sources}
    expected |= {(state, to, due.verb) for state, due in ON_DUE.items() for to in due.to or ("[*]",)}

    # When they are read off the picture, then they are the same, beside the two ways in
    shown = set(re.findall(r"^    (\S+) --> (\S+): (.+)$", mermaid(), re.MULTILINE))
    assert {arrow for arrow in shown if arrow[0] != "[*]"} == expected
    assert {to for source, to, _ in shown if source == "[*]"} == {"PENDING", "SCHEDULED"}


def test_the_page_is_up_to_date() -> None:
    for state in State:
        assert f"| `{state}` | {MEANING[state]} |" in page()
    if PAGE.exists():
        assert PAGE.read_text() == page(), "docs/states.md is out of date: run `make gen`"
