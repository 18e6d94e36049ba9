"""What keeps PostgreSQL from removing the rows that jobs leave behind: transactions that have been open for long, and the like.

While one is, all that was deleted since it began stays where the next job is looked for.
"""

from datetime import datetime
from typing import Any, Final, NamedTuple

from gotask.clock import from_epoch, now

LIMIT_S: Final = 300.0  #: seconds that a transaction may be open before somebody should hear of it
#: transactions that a slot or a standby may be behind: they say no time, and a busy store makes about so many in LIMIT_S
BEHIND: Final = 50_000


class Pin(NamedTuple):
    """One row of the statement "holds vacuum back"; with few rights, those of other users' transactions are not seen."""

    kind: str
    name: str  #: a pid, the name of a prepared transaction or of a slot
    owner: str | None
    program: str | None  #: its application_name
    state: str | None
    since: datetime | None
    behind: int | None  #: transactions

    @property
    def whose(self) -> str:
        """What it is, as the beginning of a sentence."""
        known = [f"user {self.owner}" if self.owner else "", self.program or "", self.state or ""]
        named = f"pid {self.name}" if self.kind in ("transaction", "standby") else self.name
        return f"A {self.kind} ({', '.join(one for one in [named, *known] if one)})"

    @property
    def age(self) -> str:
        """Since when, as the rest of that sentence."""
        if self.since is None:
            return f"is {self.behind} transactions behind"
        minutes = (from_epoch(now()) - self.since).total_seconds() / 60
        long = f"{minutes:.0f} minutes" if minutes >= 2 else f"{minutes * 60:.0f} s"
        return f"has been open for {long}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def advice(self) -> str:
        name = self.name.replace("'", "''")
        return {
            "transaction": f"end it, if need be with SELECT pg_terminate_backend({self.name})",
            "prepared transaction": f"COMMIT PREPARED or ROLLBACK PREPARED '{name}'",
            "standby": "end the long queries there, or set hot_standby_feedback to off",
            "replication slot": f"let its reader catch up, or drop it with SELECT pg_drop_replication_slot('{name}')",
        }[self.kind]


def pins(found: list[tuple[Any, ...]]) -> list[Pin]:
    """The rows of the statement, the worst first."""
    return [Pin(*row) for row in found]


def warnings(found: list[Pin]) -> dict[str, str]:
    """A sentence for whoever runs a node, by what it is about."""
    told = {}
    for pin in found[:1]:
        more = f" So do {len(found) - 1} more." if len(found) > 1 else ""
        harm = "so PostgreSQL cannot clean up after jobs, and finds each of them more slowly"
        told[f"{pin.kind} {pin.name} {pin.since}"] = f"{pin.whose} {pin.age}, {harm}: {pin.advice}.{more}"
    return told
