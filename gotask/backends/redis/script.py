"""The one script of the Redis storage: the tables of gotask.states as Lua, then its parts in order."""

from collections.abc import Iterable
from hashlib import sha1
from importlib.resources import files
from typing import Final

from gotask.model import ATTEMPTS_KEPT, CRASHES_MAX, PRIORITIES, Job
from gotask.policy import AGEING
from gotask.states import DEAD_LETTER_KEEP_S, FINISHED, KEEP_S, ON_DUE, RULES, Event, State

MICROSECONDS: Final = 1_000_000
_PLAIN: Final = Job()
LOOK_MOST: Final = 1000  #: jobs that one call looks at for a page of a list or for a lease, lest others wait for it
BYTES_MOST: Final = 4_194_304  #: bytes of payloads and results in one call, for the same reason
BULK_FROM: Final = 16_384  #: bytes of a job's body that a lease counts; 200 smaller ones are few enough
#: states off the usual way of a job: an index of them costs that way nothing
USUAL: Final = frozenset((*RULES[Event.LEASE].sources, RULES[Event.LEASE].to, RULES[Event.ACK].to))


END: Final = "return redis.error_reply('GoTask has no verb ' .. verb)\n"


def _set(states: Iterable[State]) -> str:
    return "{" + ", ".join(f"{state} = true" for state in State if state in set(states)) + "}"


def basics() -> str:
    """What every verb may use, as Lua."""
    defaults = ", ".join(f"{name} = '{getattr(_PLAIN, name)}'" for name in ("status", "queue", "priority"))
    numbers = {
        "PRIORITIES": PRIORITIES,
        "AGEING": AGEING,
        "LOOK_MOST": LOOK_MOST,
        "BYTES_MOST": BYTES_MOST,
        "BULK_FROM": BULK_FROM,
    }
    return _lines(
        f"local RARE = {_set(frozenset(State) - USUAL)}",
        f"local DEFAULTS = {{{defaults}}}",
        *(f"local {name} = {value}" for name, value in numbers.items()),
    )


def tables() -> str:
    """The state machine, as Lua, for the verbs that move jobs one by one."""
    rules = ", ".join(f"{event} = {{from = {_set(row.sources)}, to = '{row.to}'}}" for event, row in RULES.items())
    due = ", ".join(
        f"{state} = {{verb = '{row.verb}', to = {repr(str(row.to[0])) if row.to else 'nil'}}}" for state, row in ON_DUE.items()
    )
    keep = ", ".join(f"{state} = {seconds * MICROSECONDS:.0f}" for state, seconds in KEEP_S.items())
    numbers = {
        "KEEP_DEAD_LETTER": f"{DEAD_LETTER_KEEP_S * MICROSECONDS:.0f}",
        "ATTEMPTS_KEPT": ATTEMPTS_KEPT,
        "CRASHES_MAX": CRASHES_MAX,
    }
    return _lines(
        f"local RULES = {{{rules}}}",
        f"local ON_DUE = {{{due}}}",
        f"local FINISHED = {_set(FINISHED)}",
        f"local KEEP = {{{keep}}}",
        *(f"local {name} = {value}" for name, value in numbers.items()),
    )


def _lines(*lines: str) -> str:
    return "\n".join((*lines, ""))


def _part(name: str) -> str:
    return files("gotask.backends.redis").joinpath(f"{name}.lua").read_text()


#: redis.lua names all keys; a verb returns at the end of its part, so that the tables are made only for those that need them
FIRST_PARTS: Final = ("redis", "enqueue", "lease", "look", "records", "shards")
MOVING_PARTS: Final = ("moves", "settle", "tick", "hand")
TEXT: Final = "\n".join((basics(), *map(_part, FIRST_PARTS), tables(), *map(_part, MOVING_PARTS), END))
#: the name that Redis gives the script, for EVALSHA
SHA: Final = sha1(TEXT.encode(), usedforsecurity=False).hexdigest()
