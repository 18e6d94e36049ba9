"""What `gotask doctor` finds about the PostgreSQL of a storage."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gotask import backends
from gotask.cli.finding import Finding, bad_if, warn_if
from gotask.errors import GotaskError

if TYPE_CHECKING:
    from gotask.backends.postgres.facts import Facts

CONNECTIONS_SHARE: Final = 0.8  #: part of max_connections in use, above which to warn
DEAD_LEAST: Final = 50_000  #: dead rows that are no trouble, however few are alive: a busy store leaves them within seconds
DEAD_SHARE: Final = 5  #: dead rows for each that is alive, above which to warn
SHOWN: Final = 4  #: rights and transactions that are named


def postgres(url: str) -> Iterator[Finding]:
    """What the server of a PostgreSQL storage says of itself."""
    if not backends.is_kept_in(url, "postgres"):
        return
    try:
        from gotask.backends.postgres import facts

        found = facts.look(url)
    except (GotaskError, ModuleNotFoundError):
        return  # told as the storage's
    version = found.settings["server_version"]
    standby = f"{version}, but a standby, which takes no writes: name the primary" if found.standby else ""
    yield bad_if("postgresql", f"{version}: older than GoTask needs" if found.old else standby, version)
    yield durability(found.settings)
    yield schema(found)
    lacks = ", ".join(found.rights[:SHOWN]) + (f" and {len(found.rights) - SHOWN} more" if len(found.rights) > SHOWN else "")
    yield bad_if("rights", f"this user lacks {lacks}: GRANT as docs/postgres.md says" if lacks else "", "all that GoTask needs")
    yield listening(found.hears)
    yield connections(found)
    yield cleaning(found)
    yield transactions(found)


def connections(found: "Facts") -> Finding:
    used = f"{found.used} of {found.most} in use"
    few = found.used >= CONNECTIONS_SHARE * found.most
    advice = f", only {found.most - found.used} left: raise max_connections, or put a pooler before it"
    return warn_if("connections", used + advice if few else "", used)


def durability(settings: dict[str, str]) -> Finding:
    lax = [f"{name} {settings[name]}" for name in ("fsync", "full_page_writes") if settings[name] != "on"]
    lax += ["synchronous_commit off"] if settings["synchronous_commit"] == "off" else []
    trouble = f"{', '.join(lax)}: what was accepted may be lost with the power; set it to on in postgresql.conf" if lax else ""
    return warn_if("durability", trouble, f"fsync on, synchronous_commit {settings['synchronous_commit']}")


def schema(found: "Facts") -> Finding:
    if not found.made:
        return Finding("schema", "bad", f"{found.schema} has no store yet: gotask migrate up")
    post = all("-post-" in name for name in found.lacks)
    told = f"{found.schema} lacks {', '.join(found.lacks)}: gotask migrate up" + (" --post, once no older node is left" * post)
    return Finding("schema", "warn" if post else "bad", told) if found.lacks else Finding("schema", "ok", found.schema)


def listening(hears: bool | None) -> Finding:
    if hears is None:
        return Finding("notifications", "ok", "off, so all look from time to time")
    deaf = "not heard, as behind a pooler in transaction mode: nodes look four times a second instead of being woken"
    return warn_if("notifications", "" if hears else deaf, "heard")


def cleaning(found: "Facts") -> Finding:
    rows = f"{found.dead} dead rows of jobs beside {found.live} that are alive"
    if found.settings["autovacuum"] != "on" or not found.vacuumed:
        return Finding("vacuum", "bad", f"autovacuum is off, so leasing gets ever slower ({rows}): set it to on")
    many = found.dead > max(DEAD_LEAST, DEAD_SHARE * found.live)
    advice = ", since autovacuum does not keep up: look for what holds it back, then VACUUM"
    return warn_if("vacuum", rows + advice if many else "", rows)


def transactions(found: "Facts") -> Finding:
    hidden = f"; {found.hidden} sessions are hidden from this user: GRANT pg_monitor TO it" if found.hidden else ""
    if found.pins:
        first, more = found.pins[0], f", and {len(found.pins) - 1} more do so" if len(found.pins) > 1 else ""
        told = f"{first.whose} {first.age} and keeps vacuum from cleaning up{more}: {first.advice}{hidden}"
        return Finding("transactions", "warn", told)
    return Finding("transactions", "ok", f"none has been open for long{hidden}")
