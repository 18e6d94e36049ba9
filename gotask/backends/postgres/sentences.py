"""What PostgreSQL or the network says, as one sentence that names what is wrong and what to do."""

import re
from typing import Any, Final

import psycopg
from psycopg import errors as said

from gotask.backends.postgres.address import Address
from gotask.backends.postgres.link import Late
from gotask.errors import BackendDown, NotConfigured
from gotask.log import scrub

OLDEST: Final = 130000  #: version of PostgreSQL, as it counts them
FULL_RETRY_S: Final = 5.0  #: seconds that a producer should wait when the disk is full
#: SQLSTATE of a table, column, schema or function that is not there
_UNMADE: Final = ("42P01", "42703", "3F000", "42883")
_LATE: Final = ("57014", "55P03", "25P03", "25P04")
_GOODBYE: Final = ("57P01", "57P02", "57P03", "57P05", "08")


def refusal(address: Address, facts: tuple[Any, ...]) -> str | None:
    """Why a server must not be used, if so; `facts` as server.py asks for them."""
    number, version, encoding, fsync, pages, commit = facts[:6]
    at = f"PostgreSQL at {address.shown}"
    if number < OLDEST:
        return f"{at} has version {version}; GoTask needs PostgreSQL {OLDEST // 10000} or later."
    if encoding != "UTF8":
        return f"{at} keeps text as {encoding}; GoTask needs a database made with ENCODING 'UTF8'."
    lax = next((f"{name} {value}" for name, value in (("fsync", fsync), ("full_page_writes", pages)) if value != "on"), None)
    lax = lax or (f"synchronous_commit {commit}" if commit == "off" else None)
    if lax and address.durable:
        return (
            f"{at} may lose what it has accepted ({lax}); set it to on in postgresql.conf, or add durable=false to the URL if "
            "that may be."
        )
    return None


def translated(address: Address, error: Exception) -> BackendDown | NotConfigured:
    """An error in a sentence."""
    at = f"PostgreSQL at {address.shown}"
    text = _said(error)
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, Late) or state in _LATE:
        return BackendDown(
            f"{at} did not answer within {address.timeout:g} s; the outcome is unknown, so try again with the same id."
        )
    if state in _UNMADE:
        return NotConfigured(f"The schema {address.schema} at {address.shown} is not up to date ({text}): gotask migrate up.")
    if isinstance(error, said.InsufficientPrivilege):
        return BackendDown(f"{at} does not let us do this ({text}); look at the user and its rights.", refused=True)
    if state in ("53100", "53200", "53000"):
        sentence = f"{at} has no room ({text}); free some disk or memory, then try again."
        return BackendDown(sentence, retry_after=FULL_RETRY_S, refused=True)
    if state == "25006":
        sentence = f"{at} takes no writes ({text}); a failover may be under way, so try again, or name the primary."
        return BackendDown(sentence, refused=True)
    if state in ("40001", "40P01"):
        return BackendDown(f"{at} was too busy with others' changes of the same jobs ({text}); try again with the same id.")
    if _is_no_database(state, text):
        return NotConfigured(f"{at} has no such database ({text}): create it, or name another.")
    if "definition of service" in text or "service file" in text:
        return NotConfigured(f"The storage {address.shown}?service=... cannot be used ({text}); look at pg_service.conf.")
    if isinstance(error, psycopg.OperationalError | OSError) or state.startswith(_GOODBYE):
        return _unreachable(at, state, text)
    return BackendDown(f"{at} refused ({text}); the outcome is unknown, so try again with the same id.")


def _said(error: Exception) -> str:
    """What was said, in one line. Not its details, which may be the contents of a row, nor twice what was tried twice."""
    told = getattr(error, "diag", None)
    text = (told.message_primary if told else None) or str(error)
    lines = dict.fromkeys(re.sub(r"^connection (failed|is bad): ", "", text).splitlines())
    return scrub(" ".join(" ".join(lines).split())).rstrip(".")


def _is_no_database(state: str, text: str) -> bool:
    return state == "3D000" or ("database" in text and "does not exist" in text)


def _unreachable(at: str, state: str, text: str) -> BackendDown:
    if state.startswith("28") or "authentication failed" in text or "no password supplied" in text or "pg_hba.conf" in text:
        return BackendDown(f"{at} does not let us in ({text}); look at the user, the password and pg_hba.conf.")
    if state == "53300" or "too many c" in text or "remaining connection slots" in text:
        return BackendDown(f"{at} has no free connection ({text}); raise max_connections, or put a pooler before it.")
    if "certificate" in text or "SSL" in text:
        return BackendDown(f"{at} is not trusted ({text}); look at sslmode, sslrootcert, and the name in its certificate.")
    return BackendDown(f"{at} cannot be reached ({text}); look whether it runs, and at its address.")
