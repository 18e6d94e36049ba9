"""The compose files of deployments/ and their Dockerfile agree with the programs: flags, variables, time-outs, extras."""

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import gotask.backends.postgres.address as postgres_address
import gotask.backends.redis.address as redis_address
from gotask.backends.postgres.sentences import OLDEST
from gotask.cli import gotask
from gotask.cli.flags import given
from gotask.config import load
from gotask.settings import ServerSettings, Settings, WorkerSettings

FOLDER: Final = Path(__file__).parents[2] / "deployments"
VARIABLE: Final = re.compile(r"\$\{(\w+):\?[^}]*\}")
TEXTS: Final = {"redis": (FOLDER / "compose.yaml").read_text(), "postgres": (FOLDER / "compose.postgres.yaml").read_text()}
COMPOSE: Final[dict[str, Any]] = {kind: yaml.safe_load(VARIABLE.sub("secret", text)) for kind, text in TEXTS.items()}
SERVICES: Final[dict[str, dict[str, Any]]] = {kind: found["services"] for kind, found in COMPOSE.items()}
PROGRAMS: Final[dict[str, type[Settings]]] = {"server": ServerSettings, "node": WorkerSettings}
NAMES: Final = {"server": "gotask-server", "node": "gotask-worker"}
DOCKERFILE: Final = (FOLDER / "Dockerfile").read_text()


def parsed(*words: str) -> argparse.Namespace:
    return gotask.build().parse_args(list(words))


def settings(kind: str, name: str) -> Settings:
    """The settings that a service's program would have, by its command and its environment."""
    service = SERVICES[kind][name]
    program, *words = service["command"]
    assert program == NAMES[name]
    image = dict(re.findall(r"\b(GOTASK_\w+)=(\S+)", DOCKERFILE))
    return load(PROGRAMS[name], given(parsed("config", "validate", *words)), image | service["environment"])


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def bytes_of(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(m|g)b?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 2**20, "g": 2**30}[unit]


def login(kind: str, url: str) -> tuple[str, str]:
    """Host and password of a storage."""
    if kind == "redis":
        address = redis_address.parse(url)
        return address.hosts[0][0], address.login["password"]
    found = postgres_address.parse(url).login
    return found["host"], found["password"]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_takes_what_it_is_given(kind: str, name: str) -> None:
    held, service = settings(kind, name), SERVICES[kind][name]
    # Its storage is the server of this file, with a password
    assert held.url.startswith(f"{kind}://")
    assert login(kind, held.url) == (kind, "secret")
    assert service["depends_on"] == {kind: {"condition": "service_healthy"}}
    # It is given time to stop, may not become root, and is restarted
    assert seconds(service["stop_grace_period"]) >= held.shutdown_timeout + 5  # type: ignore[attr-defined]
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert service["restart"] == "unless-stopped"
    # Its health is asked by a command that there is, which gives up before it is given up
    what, program, *words = service["healthcheck"]["test"]
    assert (what, program) == ("CMD", "gotask")
    assert parsed(*words).worker is (name == "node")
    assert seconds(service["healthcheck"]["timeout"]) > 5


@pytest.mark.parametrize("kind", TEXTS)
def test_the_server_is_reached_where_it_listens(kind: str) -> None:
    held = settings(kind, "server")
    assert isinstance(held, ServerSettings)
    assert SERVICES[kind]["server"]["ports"] == [f"127.0.0.1:{held.http_port}:{held.http_port}"]
    assert (held.http_addr, held.api_keys) == ("0.0.0.0", ("secret",))


@pytest.mark.parametrize("kind", TEXTS)
def test_there_are_two_nodes_that_share_their_locks(kind: str) -> None:
    held, node = settings(kind, "node"), SERVICES[kind]["node"]
    assert isinstance(held, WorkerSettings)
    assert node["deploy"]["replicas"] == 2
    assert held.processes == node["cpus"]
    (state,) = re.findall(r"GOTASK_STATE_DIR=(\S+)", DOCKERFILE)
    assert node["volumes"] == [f"nodes:{state}"]
    assert "hostname" not in node
    assert "ports" not in node
    assert set(COMPOSE[kind]["volumes"]) == {kind, "nodes"}


def test_the_two_files_differ_in_the_storage_alone() -> None:
    one, other = ({name: dict(SERVICES[kind][name]) for name in PROGRAMS} for kind in TEXTS)
    for services in (one, other):
        for service in services.values():
            del service["depends_on"], service["environment"]
    assert one == other


def test_redis_keeps_jobs() -> None:
    redis = SERVICES["redis"]["redis"]
    program, *words = redis["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert program == "redis-server"
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
    assert options["--requirepass"] == redis["environment"]["REDISCLI_AUTH"] == "secret"
    assert bytes_of(redis["mem_limit"]) >= 2 * bytes_of(options["--maxmemory"])
    assert redis["volumes"] == ["redis:/data"]
    assert "ports" not in redis


def test_postgres_keeps_jobs_and_knows_the_user() -> None:
    held, service = settings("postgres", "server"), SERVICES["postgres"]["postgres"]
    known = service["environment"]
    assert (known["POSTGRES_DB"], known["POSTGRES_USER"]) == (held.postgres_db, held.postgres_user)
    assert known["POSTGRES_PASSWORD"] == held.postgres_pass == "secret"
    assert "--encoding=UTF8" in known["POSTGRES_INITDB_ARGS"]
    assert int(re.findall(r"postgres:(\d+)", service["image"])[0]) * 10_000 >= OLDEST
    # Nothing that it is started with makes it forget
    assert not [word for word in service["command"] if re.match("fsync|full_page_writes|synchronous_commit", word)]
    assert service["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert service["healthcheck"]["test"][-4:] == ["-U", held.postgres_user, "-d", held.postgres_db]
    assert bytes_of(service["mem_limit"]) > bytes_of(service["shm_size"])
    assert "ports" not in service


@pytest.mark.parametrize("kind", TEXTS)
def test_every_variable_is_explained(kind: str) -> None:
    page = (FOLDER / "README.md").read_text()
    for variable in set(VARIABLE.findall(TEXTS[kind])):
        assert f"| `{variable}` |" in page
        assert f"{variable}=%s" in page
        assert f"{variable}=%s" in TEXTS[kind]
    assert "${" not in VARIABLE.sub("", TEXTS[kind])


def test_the_image_is_small_unprivileged_and_has_what_it_runs() -> None:
    build, final = re.split(r"(?m)^FROM ", DOCKERFILE)[1:]
    assert build.startswith("python:3.12-slim AS build\n")
    assert final.startswith("python:3.12-slim\n")
    assert "gcc" not in final
    # It has the extras that a server on Redis or PostgreSQL needs
    (extras,) = re.findall(r"pip install --no-cache-dir '\.\[([\w,]+)\]'", build)
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) == {"server", "redis", "postgres"} <= set(project["optional-dependencies"])
    # What is copied exists, and is not kept away from the build
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", build):
        for name in line.split():
            assert (FOLDER.parent / name).exists()
            assert f"!{name}" in ignored
    # It runs as a user that is made there, and as PID 1 without a shell between
    (user,) = re.findall(r"(?m)^USER (\d+)$", final)
    assert f"--uid {user}" in final
    assert final.rstrip().endswith('CMD ["gotask", "up"]')
    assert "gotask" in project["scripts"]
    assert parsed("up")
    assert SERVICES["redis"]["server"]["build"] == {"context": "..", "dockerfile": "deployments/Dockerfile"}
