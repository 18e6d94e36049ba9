"""URLs of the PostgreSQL storage: each form reaches its server, and each mistake is a sentence in time, without a password."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from lab import refusal, works

from gotask import backends
from gotask.backends.postgres.address import parse
from gotask.config import load
from gotask.errors import NotConfigured
from gotask.settings import ServerSettings
from tests.servers.certificates import Certificates
from tests.servers.fixtures import Servers, StartPostgres
from tests.servers.postgres import Postgres

USER: Final = "o\"d d's"
PASSWORD: Final = "p@s/s w%rd?#:\"'\\é"


@pytest.fixture
def server(servers: Servers) -> Postgres:
    return servers.postgres


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


@pytest.fixture
def database(server: Postgres) -> Iterator[Postgres]:
    """The server with a database as the original names it, and a user and password that need care."""
    server.command("CREATE DATABASE taskqueue")
    server.command(f"""CREATE ROLE "o""d d's" LOGIN PASSWORD '{PASSWORD.replace("'", "''")}'""")
    server.command("""GRANT CREATE ON DATABASE taskqueue TO "o""d d's" """)
    yield server
    server.command("DROP DATABASE taskqueue")
    server.command("""DROP ROLE "o""d d's" """)


# what works


def test_a_server_by_tcp_and_by_its_socket(server: Postgres) -> None:
    folder = quote(str(server.socket_folder), safe="")
    for url in (
        f"{server.url}?schema=urls",
        f"{server.url.replace('postgres:', 'postgresql:', 1)}?schema=urls",
        f"postgres://postgres:pw@localhost:{server.port}/postgres?schema=urls",
        f"{server.unix_url}&schema=urls",
        f"postgres://postgres@{folder}:{server.port}/postgres?schema=urls",
    ):
        works(url)
    server.command("DROP SCHEMA urls CASCADE")


def test_several_hosts_of_which_one_is_away(server: Postgres) -> None:
    works(f"postgres://postgres:pw@127.0.0.1:1,127.0.0.1:{server.port}/postgres?schema=several")
    server.command("DROP SCHEMA several CASCADE")


@pytest.mark.parametrize("how", ["flags", "environment", "file"])
def test_the_settings_of_the_original(database: Postgres, tmp_path: Path, how: str) -> None:
    # Given a host, a port and a user; the database as it comes; and the password by one of three ways
    (tmp_path / "secret").write_text(f"{PASSWORD}\n")
    flags = {"storage": "postgres", "postgres_port": f"{database.port}", "postgres_user": USER}
    environ = {"GOTASK_POSTGRES_PASS": PASSWORD} if how == "environment" else {}
    if how == "file":
        environ = {"GOTASK_POSTGRES_PASS_FILE": f"{tmp_path / 'secret'}"}
    elif how == "flags":
        flags["postgres_pass"] = PASSWORD
    # Then by each name of this machine, the socket's folder too, they reach the database, and show no password
    for host in ("127.0.0.1", "localhost", str(database.socket_folder)):
        held = load(ServerSettings, {**flags, "postgres_host": host}, environ)
        works(held.url)
        assert parse(held.url).login["dbname"] == "taskqueue"
        assert "p@s" not in repr(held)
        assert "p%40s" not in repr(held)


def test_an_address_of_version_6_is_written_with_brackets() -> None:
    held = load(ServerSettings, {"storage": "postgres", "postgres_host": "::1"}, {})
    assert parse(held.url).login["host"] == "::1"
    several = load(ServerSettings, {"storage": "postgres", "postgres_host": "a,b", "postgres_port": "6000"}, {})
    assert (parse(several.url).login["host"], parse(several.url).login["port"]) == ("a,b", "6000")
    assert parse(several.url).login["target_session_attrs"] == "read-write"


def test_a_service_of_a_file(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("postgres://?service=jobs", NotConfigured) == (
        'The storage postgres://?service=... cannot be used (definition of service "jobs" not found); look at pg_service.conf.'
    )
    file = tmp_path / "services"
    file.write_text(f"[jobs]\nhost=127.0.0.1\nport={server.port}\nuser=postgres\npassword=pw\ndbname=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    works("postgres://?service=jobs&schema=service")
    monkeypatch.setenv("PGSERVICE", "jobs")
    works("postgres://?schema=service")
    server.command("DROP SCHEMA service CASCADE")


def test_what_libpq_knows_by_itself(database: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given all that is needed in PG* variables
    known = {"HOST": "127.0.0.1", "PORT": f"{database.port}", "USER": USER, "PASSWORD": PASSWORD, "DATABASE": "taskqueue"}
    for name, text in known.items():
        monkeypatch.setenv(f"PG{name}", text)
    # Then a URL says nothing, or only what differs
    works("postgres://")
    works("postgresql:///taskqueue?schema=other")
    works("postgres")
    # And a password of the environment completes the flags
    flags = {"storage": "postgres", "postgres_port": f"{database.port}", "postgres_user": USER}
    works(load(ServerSettings, flags, {}).url)


def test_a_file_of_passwords(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{server.port}:*:postgres:pw\n")
    file.chmod(0o600)
    url = f"postgres://postgres@{server.address}/postgres?schema=passfile"
    works(f"{url}&passfile={file}")
    monkeypatch.setenv("PGPASSFILE", str(file))
    works(url)
    file.write_text(f"127.0.0.1:{server.port}:*:postgres:hidden\n")
    assert "hidden" not in refusal(url)
    server.command("DROP SCHEMA passfile CASCADE")


# who may come in, and whom we trust


def test_tls_is_verified(start_postgres: StartPostgres, servers: Servers, tmp_path: Path) -> None:
    server = start_postgres(certificates=servers.certificates)
    stranger = Certificates(tmp_path / "stranger")
    options = f"sslmode=verify-full&sslrootcert={servers.certificates.ca}"
    for host in (server.address, f"localhost:{server.port}"):
        works(f"postgres://postgres:pw@{host}/postgres?{options}")
    assert server.command("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", url=f"{server.url}?{options}") == [
        (True,)
    ]
    # A wrong authority, a file that is not there, and a name that the certificate lacks: each is one sentence
    at = f"PostgreSQL at postgres://postgres:***@{server.address}/postgres"
    told = f'{at} is not trusted (connection to server at "127.0.0.1", port {server.port} failed: '
    advice = "; look at sslmode, sslrootcert, and the name in its certificate."
    strange = refusal(f"{server.url}?sslmode=verify-full&sslrootcert={stranger.ca}")
    assert strange == f"{told}SSL error: certificate verify failed){advice}"
    lacking = refusal(f"{server.url}?sslmode=verify-full&sslrootcert={tmp_path}/none.pem")
    assert lacking.startswith(f'{told}root certificate file "{tmp_path}/none.pem" does not exist')
    named = refusal(f"postgres://postgres:pw@elsewhere:{server.port}/postgres?{options}&hostaddr=127.0.0.1")
    assert 'does not match host name "elsewhere")' in named
    assert named.endswith(advice)


def test_a_server_without_tls_is_not_trusted_with_verify_full(server: Postgres, servers: Servers) -> None:
    said = refusal(f"{server.url}?sslmode=verify-full&sslrootcert={servers.certificates.ca}")
    assert "is not trusted (" in said
    assert "server does not support SSL, but SSL was required)" in said


def test_a_wrong_password_is_one_sentence_and_is_never_shown(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = f'connection to server at "127.0.0.1", port {server.port} failed: FATAL: password authentication failed for user'
    advice = "look at the user, the password and pg_hba.conf."
    for login, shown in (("postgres:hidden@", "postgres:***@"), ("nobody:hidden@", "nobody:***@"), ("postgres@", "postgres@")):
        monkeypatch.setenv("PGPASSWORD", "hidden")
        user = shown.partition(":")[0].rstrip("@")
        said = refusal(f"postgres://{login}{server.address}/postgres")
        assert (
            said == f'PostgreSQL at postgres://{shown}{server.address}/postgres does not let us in ({tried} "{user}"); {advice}'
        )
    assert "hidden" not in refusal(f"postgres://postgres@{server.address}/postgres?password=hidden")
    monkeypatch.delenv("PGPASSWORD")
    assert "fe_sendauth: no password supplied" in refusal(f"postgres://postgres@{server.address}/postgres")


# mistakes that show in the URL


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres://h/d?schem=x", "there is no option 'schem'; did you mean 'schema'?"),
        ("postgres://h/d?sslmod=require", "there is no option 'sslmod'; did you mean 'sslmode'?"),
        ("postgres://h/d?timeout=soon", "timeout is 'soon', and must be seconds from 0.05 to 300."),
        ("postgres://h/d?schema=a%20b", "schema is 'a b', and must be up to 48 letters, digits and _.:-"),
        ("postgres://h/d?notify=maybe", "notify is 'maybe', and must be off, or seconds from 0 to 10"),
        ("postgres://h/d?schema=a&schema=b", "it says schema twice"),
        ("postgres://h:port/d", "write it as postgres://user:password@host:port/database"),
        ("postgres://u:p/w@h/d", "/ as %2F"),
        ("postgres://u:p?w@h/d", "? as %3F"),
        ("postgres://u:p#w@h/d", "# as %23"),
        ("postgres://u:p%zz@h/d", "and so on"),
        ("postgres://h/d?sslpassword=p&schem=x", "did you mean 'schema'?"),
    ],
)
def test_a_wrong_url_is_told_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(NotConfigured) as caught:
        backends.open(url)
    assert says in str(caught.value)
    assert not any(part in str(caught.value) for part in ("p/w", "p?w", "p#w", "zz", "sslpassword=p"))


def test_what_a_url_says_reaches_libpq() -> None:
    made = parse("postgresql://u:p%40ss@a,b:6543/d?sslmode=verify-full&sslrootcert=/x.pem&schema=mine&application_name=me")
    assert (made.login["user"], made.login["password"], made.login["host"]) == ("u", "p@ss", "a,b")
    assert (made.login["sslmode"], made.login["sslrootcert"], made.login["application_name"]) == ("verify-full", "/x.pem", "me")
    assert made.login["target_session_attrs"] == "read-write"
    assert made.schema == "mine"
    assert parse("postgres://?service=jobs").login["service"] == "jobs"
