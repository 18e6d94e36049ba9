"""Schemas of PostgreSQL that a test has left, made as if they were new: in a quarter of the time that it takes to make one."""

import re
from collections import defaultdict
from contextlib import suppress
from typing import Any, Final

import psycopg

from gotask.backends.postgres import migrations
from gotask.backends.postgres.sql import quoted

PLACE: Final = "schema={name}"  #: in the URL of a target whose stores are schemas of one database
#: tables that are not empty when they are new, but have one row
ONE_ROW: Final = re.findall(r"^INSERT INTO (\w+) DEFAULT VALUES;", "\n".join(migrations.steps().values()), re.MULTILINE)
TABLES: Final = """
SELECT c.relname, c.relkind::text, c.relispartition AND c.relname ~ '[0-9]{8}$'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'S') AND c.relname <> 'migrations' ORDER BY 1
"""
WAIT_S: Final = 5  #: seconds in which all that a test has left in a store must let go of it

_spare: defaultdict[str, list[str]] = defaultdict(list)


def spare(target: str) -> str | None:
    """The name of a schema that is as good as a new one, if there is one for this target."""
    return _spare[target].pop() if _spare[target] else None


def keep(target: str, url: str, schema: str) -> None:
    """Empty a schema for the next test; one that somebody still holds is left alone, and one that is not there too."""
    with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable, psycopg.OperationalError):
        with psycopg.connect(url.partition("?")[0], connect_timeout=WAIT_S, prepare_threshold=None) as link:
            empty(link, schema)
        _spare[target].append(schema)


def empty(link: psycopg.Connection[Any], schema: str) -> None:
    """Leave the tables and rows that the steps of the migrations make, and no others."""
    link.execute(f"SET LOCAL lock_timeout = '{WAIT_S}s'")
    found = link.execute(TABLES, (schema,)).fetchall()
    days = [name for name, _, of_a_day in found if of_a_day]
    tables = [name for name, kind, of_a_day in found if kind != "S" and not of_a_day]
    if days:
        link.execute(f"DROP TABLE {_listed(schema, days)}".encode())
    link.execute(f"TRUNCATE {_listed(schema, tables)} RESTART IDENTITY".encode())
    for name, kind, _ in found:
        if kind == "S":
            link.execute(f"ALTER SEQUENCE {_listed(schema, [name])} RESTART".encode())
    for name in ONE_ROW:
        link.execute(f"INSERT INTO {_listed(schema, [name])} DEFAULT VALUES".encode())


def _listed(schema: str, names: list[str]) -> str:
    return ", ".join(f"{quoted(schema)}.{quoted(name)}" for name in names)
