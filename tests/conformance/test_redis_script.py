"""The one script of the Redis storage: it has no globals, and its tables are those of gotask.states."""

import re
from itertools import pairwise

import msgspec
import pytest
from redis.exceptions import ResponseError

from gotask.backends.redis import script
from gotask.states import FINISHED, ON_DUE, RULES
from tests.servers.fixtures import Servers


def lua_names(text: str) -> tuple[set[str], set[str]]:
    """The names that a Lua text declares as local, and those it uses that are none of a table's fields."""
    text = re.sub(r"--[^\n]*", "", text)
    text = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "''", text)
    declared = {
        name for names in re.findall(r"\blocal ([\w, ]+?)(?= =|\n| in\b|$)", text) for name in re.findall(r"\w+", names)
    }
    for names in [*re.findall(r"\bfunction[^\n(]*\(([^)]*)\)", text), *re.findall(r"\bfor ([\w, ]+?)(?: in| =)", text)]:
        declared |= set(re.findall(r"\w+", names))
    declared |= set(re.findall(r"\blocal function (\w+)", text))
    used, inside, tokens = set(), [], re.findall(r"\.\.|==|[\w.]*\w|\S", text)
    for token, following in pairwise([*tokens, ""]):
        if token in "({[":
            inside.append(token)
        elif token in ")}]":
            inside.pop()
        word = re.match(r"[A-Za-z_]\w*", token)
        if word and not (following == "=" and inside[-1:] == ["{"]):
            used.add(word[0])
    return declared, used


LUA = set(
    re.findall(
        r"\w+",
        "and break do else elseif end false for function if in local nil not or repeat return then true until while",
    )
)
REDIS = set(re.findall(r"\w+", "redis KEYS ARGV cjson string math table ipairs pairs tonumber tostring type unpack"))


def test_the_script_has_no_globals(servers: Servers) -> None:
    declared, used = lua_names(script.TEXT)
    methods = set(re.findall(r":(\w+)\(", script.TEXT))
    assert used - declared - LUA - REDIS - methods == set()
    # And Redis takes it under the name that we call it by
    server = servers.redis
    assert server.command("SCRIPT", "LOAD", script.TEXT) == script.SHA
    with pytest.raises(ResponseError, match="GoTask has no verb nonsense"):
        server.command("EVALSHA", script.SHA, 1, "nobody", "nonsense", "")


def test_the_search_for_globals_finds_them() -> None:
    declared, used = lua_names(
        "local a, b = 1\nlocal function f(c) return {d = c, a} end -- x\nfor _, e in f('y') do g = e.h end"
    )
    assert used - declared - LUA == {"g"}


def test_the_states_of_the_script_are_those_of_the_table(servers: Servers) -> None:
    text = script.tables() + "return cjson.encode({RULES, ON_DUE, FINISHED})"
    rules, due, finished = msgspec.json.decode(servers.redis.command("EVAL", text, 0))
    assert rules == {event: {"from": dict.fromkeys(row.sources, True), "to": row.to} for event, row in RULES.items()}
    assert {state: row["verb"] for state, row in due.items()} == {state: row.verb for state, row in ON_DUE.items()}
    assert set(finished) == FINISHED
