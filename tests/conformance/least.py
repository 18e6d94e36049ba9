"""The PostgreSQL storage of a user with few rights: one role owns and migrates, one works with what docs/postgres.md grants.

`open` is an opener for the suite; its URL is that of a superuser, who makes the two roles.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import psycopg

from gotask.backends import postgres
from gotask.backends.postgres import upkeep
from gotask.backends.postgres.sql import quoted

PAGE: Final = (Path(__file__).parents[2] / "docs/postgres.md").read_text()
GRANTS: Final = re.findall(r"^GRANT .+ SCHEMA gotask TO app;$", PAGE, re.MULTILINE)
ROLES: Final = """
SELECT pg_advisory_xact_lock(7);
DO $$ BEGIN
    IF to_regrole('app') IS NULL THEN
        CREATE ROLE app LOGIN PASSWORD 'app';
        CREATE ROLE owner LOGIN PASSWORD 'owner';
    END IF;
END $$;
REVOKE CREATE, TEMPORARY ON DATABASE postgres FROM PUBLIC;
GRANT CREATE ON DATABASE postgres TO owner;
"""


def url_of(role: str, url: str) -> str:
    return re.sub(r"//[^@]+@", f"//{role}:{role}@", url)


def grants(schema: str, role: str = "app") -> list[str]:
    """The statements of the page, for a schema and a role."""
    assert len(GRANTS) == 3
    return [one.replace("SCHEMA gotask TO app", f"SCHEMA {quoted(schema)} TO {role}") for one in GRANTS]


@cache
def make(url: str) -> None:
    """The roles, and a store that the owner has migrated and granted; what is there already stays."""
    with psycopg.connect(url.partition("?")[0]) as link:
        link.execute(ROLES)
    if upkeep.up(url_of("owner", url), post=True):
        with psycopg.connect(url_of("owner", url).partition("?")[0]) as link:
            for grant in grants(url.rpartition("schema=")[2]):
                link.execute(grant.encode())


def open(url: str, clock: Callable[[], float] | None = None) -> postgres.Postgres:
    make(url)
    return postgres.open(url_of("app", url), clock)
