"""The programs on PostgreSQL: the original's flags, what they refuse, few rights, a pooler that restarts, and idle hours."""

import json
import re
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from gotask import GoTask
from tests.e2e.conftest import ROOT, Ground, one_line, until
from tests.servers.certificates import Certificates
from tests.servers.fixtures import Servers, StartPostgres
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres

PASSWORD: Final = "p@ss/w?rd#1"
IDLE_S: Final = 15.0  #: seconds over which an idle system is watched
IDLE_MOST: Final = 75  #: statements a minute, of one server and one node together
ROLES: Final = (
    "CREATE ROLE owner LOGIN PASSWORD 'owner'",
    "CREATE ROLE app LOGIN PASSWORD 'app'",
    "CREATE DATABASE jobs OWNER owner",
)


@pytest.fixture
def server(start_postgres: StartPostgres) -> Postgres:
    return start_postgres()


@pytest.mark.parametrize("how", ["flags", "environment", "file"])
def test_the_flags_of_the_original(ground: Ground, servers: Servers, how: str) -> None:
    # Given a database and a user as the original names them, but for a password that has to be quoted
    server = servers.postgres
    server.command(f"CREATE ROLE seed LOGIN PASSWORD '{PASSWORD}'")
    server.command("CREATE DATABASE taskqueue OWNER seed")
    flags = ["-storage=postgres", "-postgres-host=127.0.0.1", f"-postgres-port={server.port}", "-postgres-user=seed"]
    if how == "flags":
        flags += ["-postgres-pass", PASSWORD]
    elif how == "environment":
        ground.env["GOTASK_POSTGRES_PASS"] = PASSWORD
    else:
        (ground.folder / "secret").write_text(f"{PASSWORD}\n")
        ground.env["GOTASK_POSTGRES_PASS_FILE"] = str(ground.folder / "secret")
    try:
        # When everything runs, at once or apart, then it works
        if how == "flags":
            programs = [ground.up(*flags, "-postgres-db=taskqueue", "-c", "2")]
        else:
            programs = [ground.start("gotask-server", *flags), ground.start("gotask-worker", *flags, "-c", "1")]
            until("the server", lambda: ground.get("/readyz")[0] == 200)
        assert ground.json("job", "submit", "echo", "--wait", "--wait-timeout", "60", *flags)["status"] == "SUCCESS"
        # And no password was shown
        said = "".join(program.output for program in programs) + ground.gotask("config", "show", *flags)
        assert "p@ss" not in said
        assert "p%40ss" not in said
        assert {program.stop() for program in programs} == {0}
    finally:
        ground.clear()
        server.command("DROP DATABASE taskqueue (FORCE)")
        server.command("DROP ROLE seed")


def refused(ground: Ground, url: str) -> set[str]:
    """What all programs that end at once say, without their names."""
    said = set()
    for name, *argv in (("gotask", "up"), ("gotask", "migrate", "up"), ("gotask", "migrate", "status")):
        done = ground.run(name, *argv, f"-storage={url}", code=None)
        assert done.returncode == (2 if argv == ["up"] or "no such database" in done.stderr else 1)
        assert done.stdout == ""
        said.add(one_line(done.stderr).removeprefix(f"{name}: "))
    return said


def test_who_is_not_let_in_is_told_in_a_sentence(ground: Ground, servers: Servers) -> None:
    server = servers.postgres
    (wrong,) = refused(ground, f"postgres://postgres:hidden@{server.address}/postgres")
    assert wrong.startswith(f"PostgreSQL at postgres://postgres:***@{server.address}/postgres does not let us in (")
    assert "hidden" not in wrong
    (none,) = refused(ground, f"postgres://postgres:pw@{server.address}/nothere")
    assert "has no such database (" in none
    assert none.endswith('database "nothere" does not exist): create it, or name another.')
    # A server is awaited nevertheless, since a password may be mended, and does not show it either
    program = ground.start("gotask-server", f"-storage=postgres://postgres:hidden@{server.address}/postgres")
    until("it says so", lambda: "waiting for the storage: " in program.output)
    until("it listens", lambda: ground.get("/livez")[0] == 200)
    assert "does not let us in" in ground.get("/readyz")[1]["detail"]
    program.stop()
    assert "hidden" not in program.output


def test_a_server_that_cannot_prove_who_it_is(
    ground: Ground, start_postgres: StartPostgres, servers: Servers, tmp_path: Path
) -> None:
    server, stranger = start_postgres(certificates=servers.certificates), Certificates(tmp_path / "stranger")
    trusted = f"{server.url}?sslmode=verify-full&sslrootcert={servers.certificates.ca}"
    assert "was brought up to date: 001-pre-tables" in ground.gotask("migrate", f"-storage={trusted}")
    (said,) = refused(ground, f"{server.url}?sslmode=verify-full&sslrootcert={stranger.ca}")
    assert "is not trusted (" in said
    assert "certificate verify failed" in said


def test_a_server_that_may_lose_jobs_is_refused_at_start(ground: Ground, start_postgres: StartPostgres) -> None:
    server = start_postgres(fsync="off")
    for name, *argv in (("gotask-server",), ("gotask-worker",), ("gotask", "up")):
        done = ground.run(name, *argv, f"-storage={server.url}", code=2)
        assert "may lose what it has accepted (fsync off); set it to on in postgresql.conf, " in one_line(done.stderr)


def test_the_user_with_few_rights_can_run_everything(ground: Ground, server: Postgres) -> None:
    # Given an owner who has migrated by the command line, and granted what the page says
    for statement in ROLES:
        server.command(statement)
    owner, app = (f"postgres://{role}:{role}@{server.address}/jobs" for role in ("owner", "app"))
    grants = re.findall(r"^GRANT .+;$", (ROOT / "docs/postgres.md").read_text(), re.MULTILINE)
    refusal = one_line(ground.run("gotask-server", f"-storage={app}", code=2).stderr)
    assert refusal.endswith("this user may not make it: run gotask migrate up as one who may.")
    ground.gotask("migrate", "up", f"-storage={owner}")
    for grant in grants:
        server.command(grant, url=owner)
    before = len(server.log)
    # When jobs are submitted, awaited, listed, cancelled and retried, by command and over REST
    ground.apart(f"{app}?migrate=false")
    ground.work_every_way()
    assert ground.get("/api/v1/jobs?status=success")[0] == 200
    found = {one["what"]: one["verdict"] for one in json.loads(ground.run("gotask", "doctor", "--json", code=None).stdout)}
    assert found["storage"] == "ok"
    # Then nothing was refused
    assert "permission denied" not in server.log[before:]


def test_programs_that_outlive_their_pooler(ground: Ground, servers: Servers, tmp_path: Path) -> None:
    with PgBouncer(tmp_path / "bouncer", servers.postgres) as bouncer:
        # Given a server, a node and a producer that have worked through it
        url = f"{bouncer.url}?schema=pooled"
        programs = ground.apart(url)
        with closing(GoTask(url)) as app:
            assert app.enqueue("echo", {"message": "1"}).result(timeout=30)
            # When it ends and comes back
            bouncer.stop()
            time.sleep(1.0)
            bouncer.start()
            # Then all go on by themselves
            until("ready", lambda: ground.get("/readyz")[0] == 200)
            assert app.enqueue("echo", {"message": "2"}).result(timeout=30)
            assert ground.json("job", "submit", "echo", "--wait", f"-storage={ground.url}")["status"] == "SUCCESS"
        assert [program.stop() for program in programs] == [0, 0]
        assert not any("Traceback" in program.output for program in programs)
    servers.postgres.command("DROP SCHEMA pooled CASCADE")


@pytest.mark.timeout(180)
def test_an_idle_system_asks_little(ground: Ground, start_postgres: StartPostgres) -> None:
    # Given a server and a node that have worked, and have nothing to do
    server = start_postgres(log_statement="all")
    ground.apart(server.url)
    assert ground.json("job", "submit", "echo", "--wait")["status"] == "SUCCESS"
    time.sleep(3.0)
    # When nothing happens for a while
    before = len(server.log)
    time.sleep(IDLE_S)
    # Then PostgreSQL is asked about once a second at most, but for looks into an empty table, four times a second by each
    asked = re.findall(r"LOG:  (?:execute [^:]*|statement): (.{,60})", server.log[before:])
    looks = [statement for statement in asked if statement.startswith("WITH gone AS")]
    asked = [statement for statement in asked if statement not in looks]
    print(f"\nidle: {len(asked) * 60 / IDLE_S:.0f} statements a minute, {Counter(asked)}, {len(looks) * 60 / IDLE_S:.0f} looks")
    assert 0 < len(looks) / IDLE_S <= 2 * 4.5
    assert len(asked) * 60 / IDLE_S <= IDLE_MOST
