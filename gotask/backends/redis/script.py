"""The one script of the Redis storage: the tables of gotask.states as Lua, then redis.lua."""

from collections.abc import Iterable
from hashlib import sha1
from importlib.resources import files
from typing import Final

from gotask.model import ATTEMPTS_KEPT, CRASHES_MAX, PRIORITIES
from gotask.policy import AGEING
from gotask.states import DEAD_LETTER_KEEP_S, FINISHED, KEEP_S, ON_DUE, RULES, Event, State

MICROSECONDS: Final = 1_000_000
LOOK_MOST: Final = 1000  #: jobs that one call looks at for a page of a list, lest others wait for it
#: states off the usual way of a job: an index of them costs that way nothing
USUAL: Final = frozenset((*RULES[Event.LEASE].sources, RULES[Event.LEASE].to, RULES[Event.ACK].to))


def _set(states: Iterable[State]) -> str:
    return "{" + ", ".join(f"{state} = true" for state in State if state in set(states)) + "}"


def prelude() -> str:
    """The tables and numbers that redis.lua uses, as Lua."""
    rules = ", ".join(f"{event} = {{from = {_set(row.sources)}, to = '{row.to}'}}" for event, row in RULES.items())
    due = ", ".join(
        f"{state} = {{verb = '{row.verb}', to = {repr(str(row.to[0])) if row.to else 'nil'}}}" for state, row in ON_DUE.items()
    )
    keep = ", ".join(f"{state} = {seconds * MICROSECONDS:.0f}" for state, seconds in KEEP_S.items())
    numbers = {
        "KEEP_DEAD_LETTER": f"{DEAD_LETTER_KEEP_S * MICROSECONDS:.0f}",
        "PRIORITIES": PRIORITIES,
        "AGEING": AGEING,
        "ATTEMPTS_KEPT": ATTEMPTS_KEPT,
        "CRASHES_MAX": CRASHES_MAX,
        "LOOK_MOST": LOOK_MOST,
    }
    return "\n".join(
        (
            f"local RULES = {{{rules}}}",
            f"local ON_DUE = {{{due}}}",
            f"local FINISHED = {_set(FINISHED)}",
            f"local RARE = {_set(frozenset(State) - USUAL)}",
            f"local KEEP = {{{keep}}}",
            *(f"local {name} = {value}" for name, value in numbers.items()),
            "",
        )
    )


TEXT: Final = prelude() + files("gotask.backends.redis").joinpath("redis.lua").read_text()
#: the name that Redis gives the script, for EVALSHA
SHA: Final = sha1(TEXT.encode(), usedforsecurity=False).hexdigest()
