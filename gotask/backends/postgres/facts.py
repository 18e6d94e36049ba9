"""What the PostgreSQL of a storage says of itself, for `gotask doctor`: also one that would be refused."""

import os
import select
from contextlib import closing
from typing import Final, NamedTuple

from gotask.backends.postgres import migrations, pins, sql
from gotask.backends.postgres.address import Address, parse
from gotask.backends.postgres.link import Link, connect
from gotask.backends.postgres.pins import Pin
from gotask.backends.postgres.sentences import OLDEST
from gotask.backends.postgres.server import Server
from gotask.clock import monotonic

HEARD_S: Final = 1.0  #: seconds in which a notification must be heard
#: rights on a store that its user lacks. The list of its steps is only read, and a partition is asked by way of its table
_RIGHTS: Final = """
SELECT CASE WHEN NOT has_schema_privilege(n.oid, 'USAGE') THEN 'USAGE ON SCHEMA ' || n.nspname END
FROM pg_namespace n WHERE n.nspname = %(schema)s
UNION ALL
SELECT r.name || ' ON ' || c.relname FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r (name)
WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND (c.relname <> 'migrations' OR r.name = 'SELECT') AND NOT has_table_privilege(c.oid, r.name)
UNION ALL
SELECT r.name || ' ON ' || c.relname FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace, unnest(ARRAY['USAGE', 'SELECT']) r (name)
WHERE n.nspname = %(schema)s AND c.relkind = 'S' AND NOT has_sequence_privilege(c.oid, r.name)
"""
_SETTINGS: Final = ("server_version", "server_encoding", "fsync", "full_page_writes", "synchronous_commit", "autovacuum")
_NUMBERS: Final = """
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('max_connections')::int,
    (SELECT sum(numbackends)::int FROM pg_stat_database),
    (SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND query = '<insufficient privilege>')
"""
#: of `jobs`: rows, dead ones, and whether they are vacuumed at all
_ROWS: Final = """
SELECT s.n_live_tup, s.n_dead_tup, coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false)
FROM pg_stat_all_tables s JOIN pg_class c ON c.oid = s.relid WHERE s.schemaname = %s AND s.relname = 'jobs'
"""


class Facts(NamedTuple):
    old: bool  #: older than GoTask needs
    standby: bool
    settings: dict[str, str]
    schema: str
    made: bool  #: whether the schema has a store
    lacks: list[str]  #: steps that it has not had
    rights: list[str]  #: that this user lacks
    hears: bool | None  #: whether notifications come through; None if none are wanted
    most: int  #: connections
    used: int
    live: int  #: rows of unfinished jobs
    dead: int
    vacuumed: bool  #: whether autovacuum may look at them
    pins: list[Pin]  #: what has held vacuum back for long
    hidden: int  #: sessions of which this user sees nothing


def look(url: str) -> Facts:
    """Ask the server that `url` names. Raises NotConfigured or BackendDown with the reason."""
    address = parse(url)
    server = Server(address)
    with server.told(), closing(connect(address)) as link:
        link.deadline = monotonic() + address.timeout
        settings = {name: link.execute("SELECT current_setting(%s)", (name,)).fetchall()[0][0] for name in _SETTINGS}
        ((version, standby, most, used, hidden),) = link.execute(_NUMBERS).fetchall()
        have = migrations.applied(link, address.schema) if version >= OLDEST else []
        found = link.execute(_ROWS, (address.schema,)).fetchall()
        live, dead, untouched = found[0] if found else (0, 0, False)
        held = link.execute(sql.statements(address.schema)["holds vacuum back"], (pins.LIMIT_S, pins.BEHIND)).fetchall()
        return Facts(
            old=version < OLDEST,
            standby=standby,
            settings=settings,
            schema=address.schema,
            made=bool(have),
            lacks=[name for name in migrations.steps() if name not in have],
            rights=[right for (right,) in link.execute(_RIGHTS, {"schema": address.schema}).fetchall() if right],
            hears=_hears(address, link),
            most=most,
            used=used or 0,
            live=live,
            dead=dead,
            vacuumed=not untouched,
            pins=pins.pins(held),
            hidden=hidden,
        )


def _hears(address: Address, ringer: Link) -> bool | None:
    """Whether one connection hears what another tells: a pooler that gives away sessions swallows it."""
    if address.notify is None:
        return None
    channel = f"gotask:doctor:{os.urandom(8).hex()}"
    with closing(connect(address)) as ear:
        ear.deadline = monotonic() + address.timeout
        ear.execute(f"LISTEN {sql.quoted(channel)}")
        ringer.execute("SELECT pg_notify(%s, '')", (channel,))
        until = monotonic() + HEARD_S
        while (left := until - monotonic()) > 0:
            if select.select([ear.pgconn.socket], [], [], left)[0]:
                ear.pgconn.consume_input()
                if ear.pgconn.notifies() is not None:
                    return True
    return False
