"""What is written in SQL agrees with what it repeats: the words of the states, and the fields of a job."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import Raw

from gotask.backends.fields import KINDS, NAMES
from gotask.backends.postgres import migrations, rows
from gotask.backends.postgres.sql import FOLDER
from gotask.states import ON_DUE, RULES, Event, State

FILES: Final = {path.name: path.read_text() for path in sorted(Path(str(FOLDER)).rglob("*.sql"))}
TABLES: Final = FILES["001-pre-tables.sql"]
FUNCTIONS: Final = "".join(text for name, text in FILES.items() if name != "001-pre-tables.sql")
#: quoted words of capitals that are no states
OTHERS: Final = {"UTC", "YYYYMMDD"}
RUNNING: Final = RULES[Event.LEASE].to
DONE: Final = RULES[Event.ACK].to


def columns() -> dict[str, str]:
    """Those of a job, with the rest of their line."""
    body = TABLES[TABLES.index("CREATE TABLE jobs (") : TABLES.index(") WITH (", TABLES.index("CREATE TABLE jobs ("))]
    return dict(re.findall(r"^    (\w+) +(\w[^-\n]*?),? *(?:--.*)?$", body, re.MULTILINE))


def index(name: str) -> str:
    """The definition of an index, in one line."""
    found = re.search(rf"CREATE (?:UNIQUE )?INDEX {name} ON ([^;]+);", TABLES)
    assert found is not None
    return " ".join(found[1].split())


@pytest.mark.parametrize("name", FILES)
def test_every_state_word_is_a_state(name: str) -> None:
    assert set(re.findall(r"'([A-Z]{2,})'", FILES[name])) <= {*State, *OTHERS}


def test_statuses_are_compared_with_states_and_nothing_else() -> None:
    compared = re.findall(r"status\s*(?:=|<>)\s*('[^']*'|\w+)", "".join(FILES.values()))
    assert len(compared) >= 10
    for word in compared:
        assert word.strip("'") in (*State, "running", "c"), word  # `running` is a variable, `c` a row of Python's making
    assert "running text := 'RUNNING'" in FUNCTIONS


def test_partial_indexes_hold_the_states_that_they_are_for() -> None:
    (waiting,) = RULES[Event.LEASE].sources
    (lapsing,) = (state for state, due in ON_DUE.items() if due.verb == "lapse")
    assert lapsing is RUNNING
    assert index("jobs_ready") == f"jobs (queue, priority DESC, place) WHERE status = '{waiting}'"
    assert index("jobs_lapses").endswith(f"WHERE status = '{lapsing}'")
    assert index("jobs_wakes").endswith(f"WHERE status <> '{lapsing}' AND due_at IS NOT NULL")
    # And what is asked has their conditions, or they would not be used
    asked = FILES["queries.sql"] + FUNCTIONS
    assert f"status = '{lapsing}' AND due_at <= instant" in asked
    assert f"status <> '{lapsing}' AND due_at IS NOT NULL AND due_at <= instant" in asked
    assert f"status = '{waiting}' AND queue = " in asked


def test_a_new_job_is_in_a_state_that_it_may_begin_in() -> None:
    (born,) = re.findall(r"CASE WHEN wakes_at > instant THEN '(\w+)' ELSE '(\w+)' END", FUNCTIONS)
    (waiting,) = RULES[Event.LEASE].sources
    assert born == (RULES[Event.SNOOZE].to, waiting)


def test_the_columns_are_the_fields() -> None:
    assert set(columns()) == set(rows.COLUMNS)
    assert set(NAMES) | {"seq", "place", "more"} == set(columns()) | set(rows.MORE)
    assert "CREATE TABLE history (LIKE jobs INCLUDING DEFAULTS)" in TABLES


@pytest.mark.parametrize("name", [name for name in rows.COLUMNS if name in NAMES and name != "attempts"])
def test_a_column_has_the_type_of_its_field(name: str) -> None:
    types: dict[Any, tuple[str, ...]] = {
        str: ("text",), bool: ("boolean",), float: ("float8",), int: ("integer", "smallint", "bigint"), Raw: ("bytea",),
        State: ("text",),
    }  # fmt: skip
    kind = KINDS[name]
    kind = next((base for base in types if isinstance(kind, type) and issubclass(kind, base)), kind)
    plain = getattr(kind, "__origin__", kind)
    assert columns()[name].split()[0] in types.get(plain, ("timestamptz",)), (name, kind)


def test_nothing_of_a_job_is_left_behind_when_it_ends() -> None:
    # Given the list of what a plain ending moves; why it waited and what went wrong before are over
    (into,) = re.findall(r"INSERT INTO history \(([^)]+)\)", FUNCTIONS)
    assert {name.strip() for name in into.split(",")} == set(columns()) - {"reason", "error"}
    # And of what Python writes back
    (written,) = re.findall(r"UPDATE jobs j SET \(([^)]+)\)", FUNCTIONS)
    assert {name.strip() for name in written.split(",")} == {*rows.CHANGED, "place"}


def test_steps_are_named_as_what_they_are_and_run_in_order() -> None:
    for at, name in enumerate(migrations.steps(), 1):
        assert re.fullmatch(rf"{at:03d}-(pre|post)-[a-z-]+", name)
    assert migrations.needed() == [name for name in migrations.steps() if "-pre-" in name]


def test_what_a_later_version_would_replace_has_a_number() -> None:
    made = re.findall(r"CREATE FUNCTION (\w+)", FUNCTIONS)
    assert len(made) == len(set(made)) >= 10
    assert all(re.fullmatch(r"[a-z_]+_\d+", name) for name in made)
    # And none is called by another name than it was made with
    called = set(re.findall(r"\b([a-z]+_\d+) ?\(", FUNCTIONS))
    assert called <= set(made)


def test_every_function_is_planned_for_its_indexes_whatever_the_statistics_say() -> None:
    for function in FUNCTIONS.split("CREATE FUNCTION ")[1:]:
        name, head = function.split("(")[0], function.partition("$$")[0]
        assert "SET search_path FROM CURRENT" in head, name
        if "SECURITY DEFINER" in head:
            assert name == "tend_1"  # once a day, and looks into the catalogue
        elif "LANGUAGE plpgsql" in head:
            assert "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off" in " ".join(head.split()), name
