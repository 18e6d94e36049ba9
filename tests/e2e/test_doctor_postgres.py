"""`gotask doctor` on a PostgreSQL: what is well, and each thing that is not."""

import json
from contextlib import closing

import psycopg
import pytest

from gotask import backends
from gotask.backends.postgres import facts, migrations, pins
from gotask.backends.postgres.pins import Pin
from gotask.cli import doctor_postgres
from tests.e2e.conftest import Ground
from tests.servers.fixtures import Servers, StartPostgres

Findings = dict[str, tuple[str, str]]
NAMES = ("postgresql", "durability", "schema", "rights", "notifications", "connections", "vacuum", "transactions")


def findings(ground: Ground, url: str, code: int | None = None) -> Findings:
    found = json.loads(ground.gotask("doctor", "--json", f"-storage={url}", code=code))
    return {one["what"]: (one["verdict"], one["says"]) for one in found}


def examined(url: str) -> Findings:
    return {one.what: (one.verdict, one.says) for one in doctor_postgres.postgres(url)}


def test_a_good_server(ground: Ground, servers: Servers) -> None:
    found = findings(ground, f"{servers.postgres.url}?schema=doctor")
    assert {found[what][0] for what in NAMES} == {"ok"}, found
    assert found["durability"][1] == "fsync on, synchronous_commit on"
    assert (found["schema"][1], found["rights"][1], found["notifications"][1]) == ("doctor", "all that GoTask needs", "heard")
    assert found["transactions"][1] == "none has been open for long"
    servers.postgres.command("DROP SCHEMA doctor CASCADE")
    assert "postgresql" not in findings(ground, "postgres://nobody@127.0.0.1:1/none", code=1)


def test_a_poor_server(ground: Ground, start_postgres: StartPostgres) -> None:
    # Given a server that may lose what it has, hardly lets anybody in, never cleans up, and a store of an older version
    server = start_postgres(
        fsync="off", autovacuum="off", max_connections=10, superuser_reserved_connections=1, max_wal_senders=0
    )
    url = f"{server.url}?durable=false"
    with closing(backends.open(url)) as store:
        store.counts()
    *_, step = (name for name in migrations.steps() if "-pre-" in name)
    server.command("DELETE FROM gotask.migrations WHERE name = %s", step)
    links = [psycopg.connect(server.url) for _ in range(7)]
    found = findings(ground, url, code=1)
    for link in links:
        link.close()
    assert found["storage"][0] == "bad"
    assert found["durability"] == (
        "warn",
        "fsync off: what was accepted may be lost with the power; set it to on in postgresql.conf",
    )
    assert found["schema"] == ("bad", f"gotask lacks {step}: gotask migrate up")
    assert found["connections"][0] == "warn"
    assert found["connections"][1].endswith("left: raise max_connections, or put a pooler before it")
    assert found["vacuum"][0] == "bad"
    assert found["vacuum"][1].startswith("autovacuum is off, so leasing gets ever slower (")


def test_few_rights_a_pooler_and_a_long_transaction(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.postgres
    monkeypatch.setattr(pins, "LIMIT_S", 0.0)
    with closing(backends.open(f"{server.url}?schema=poor")) as store:
        store.counts()
    server.command("CREATE ROLE meek LOGIN PASSWORD 'meek'")
    try:
        server.command("GRANT USAGE ON SCHEMA poor TO meek")
        server.command("GRANT SELECT ON ALL TABLES IN SCHEMA poor TO meek")
        url = f"{server.url.replace('postgres:pw', 'meek:meek')}?schema=poor"
        with psycopg.connect(server.url, application_name="nightly") as link:
            link.execute("CREATE TABLE poor.held (n integer)")
            # Given a user who may only read: what he lacks is named, and what he cannot see
            found = examined(url)
            assert found["rights"][0] == "bad"
            assert found["rights"][1].startswith("this user lacks INSERT ON ")
            assert "sessions are hidden from this user: GRANT pg_monitor TO it" in found["transactions"][1]
            # And one who sees it, by way of a pooler
            found = examined(f"{servers.pgbouncer.url}?schema=poor")
            assert found["notifications"][0] == "warn"
            assert found["transactions"][0] == "warn"
            pid = link.info.backend_pid
            assert (
                f"A transaction (pid {pid}, user postgres, nightly, idle in transaction) has been open"
                in found["transactions"][1]
            )
        found = examined(f"{server.url}?schema=poor&notify=off")
        assert found["notifications"] == ("ok", "off, so all look from time to time")
    finally:
        server.command("DROP SCHEMA poor CASCADE")
        server.command("DROP ROLE meek")
    assert examined(f"{server.url}?schema=nowhere")["schema"] == ("bad", "nowhere has no store yet: gotask migrate up")


def test_what_is_not_cleaned_up(servers: Servers) -> None:
    with closing(backends.open(f"{servers.postgres.url}?schema=bloat")) as store:
        store.counts()
    found = facts.look(f"{servers.postgres.url}?schema=bloat")
    servers.postgres.command("DROP SCHEMA bloat CASCADE")
    assert doctor_postgres.cleaning(found).verdict == "ok"
    slot = Pin("replication slot", "old", None, None, None, None, 1_000_000)
    poor = found._replace(dead=600_000, live=100, pins=[slot, slot])
    assert doctor_postgres.cleaning(poor) == (
        "vacuum",
        "warn",
        "600000 dead rows of jobs beside 100 that are alive, since autovacuum does not keep up: look for what holds it back, "
        "then VACUUM",
    )
    assert doctor_postgres.transactions(poor).says == (
        "A replication slot (old) is 1000000 transactions behind and keeps vacuum from cleaning up, and 1 more do so: let its "
        "reader catch up, or drop it with SELECT pg_drop_replication_slot('old')"
    )
