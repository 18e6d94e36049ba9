"""The steps that make the tables and change them: files beside this one, run in the order of their names, each once.

`NNN-pre-WHAT.sql` may run while older nodes are at work; `NNN-post-WHAT.sql` only once none of them is left. A schema without
tables is made by whoever opens it first, if it may; one that lacks later steps is brought up to date by `gotask migrate up`.
"""

from functools import cache
from typing import Any, Final

import psycopg

from gotask.backends.postgres.address import Address
from gotask.backends.postgres.sql import FOLDER, quoted
from gotask.errors import NotConfigured

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('gotask migrations'), hashtext(%s))"
#: asked of the catalogue: to_regclass may answer from what the session remembers of it
_THERE: Final = "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND tablename = 'migrations'"
_LOG: Final = "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
_UNLIMITED: Final = "SELECT set_config(name, '0', true) FROM unnest('{statement_timeout,lock_timeout}'::text[]) name"
BUSY_S: Final = 30.0  #: seconds that the steps may take together when a store is made; `gotask migrate up` has no limit


@cache
def steps() -> dict[str, str]:
    """Name -> SQL of every step that this version knows, in order."""
    folder = FOLDER.joinpath("migrations")
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(".sql"))
    return {name.removesuffix(".sql"): folder.joinpath(name).read_text() for name in found}


def needed() -> list[str]:
    """The steps without which this version cannot work."""
    return [name for name in steps() if "-pre-" in name]


def applied(link: psycopg.Connection[Any], schema: str) -> list[str]:
    """The steps that a store has had; empty if there is no store."""
    log = f"{quoted(schema)}.migrations"
    if not link.execute(_THERE, (schema,)).fetchall()[0][0]:
        return []
    return [row[0] for row in link.execute(f"SELECT name FROM {log} ORDER BY name").fetchall()]


def prepare(link: psycopg.Connection[Any], address: Address) -> None:
    """See that the store has what this version needs; make one that is not there. Raises NotConfigured."""
    have = applied(link, address.schema)
    lacks = [name for name in needed() if name not in have]
    if not lacks:
        return
    if have or not address.migrate:
        what = f"lacks {', '.join(lacks)}" if have else "is not there"
        raise NotConfigured(f"The schema {address.schema} at {address.shown} {what}: run gotask migrate up.")
    try:
        up(link, address.schema, post=True)
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotConfigured(
            f"The schema {address.schema} at {address.shown} is not there, and this user may not make it: run gotask migrate "
            "up as one who may."
        ) from error


def text_of(schema: str, names: list[str]) -> str:
    """Steps as a script for psql that does what `up` would."""
    parts = [
        "BEGIN;",
        f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)};",
        f"SET LOCAL search_path TO {quoted(schema)}, pg_temp;",
        f"{_LOG};",
    ]
    for name in names:
        parts += [f"-- {name}", steps()[name].rstrip(), f"INSERT INTO migrations (name) VALUES ('{name}');"]
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"


def up(link: psycopg.Connection[Any], schema: str, post: bool) -> list[str]:
    """Run the steps that a store lacks, `post` ones too if asked to, all in one transaction; their names."""
    with link.transaction():
        link.execute(_UNLIMITED)
        link.execute(_LOCK, (schema,))
        have = applied(link, schema)
        lacks = [name for name in steps() if name not in have and (post or "-pre-" in name)]
        if lacks:
            if not link.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchall():
                link.execute(f"CREATE SCHEMA {quoted(schema)}")
            link.execute(f"SET LOCAL search_path TO {quoted(schema)}, pg_temp")
            link.execute(_LOG)
        for name in lacks:
            link.execute(steps()[name])
            link.execute("INSERT INTO migrations (name) VALUES (%s)", (name,))
    return lacks
