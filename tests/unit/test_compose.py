"""deployments/compose.yaml and its Dockerfile agree with the programs: flags, variables, time-outs, extras."""

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from gotask.backends.redis.address import parse
from gotask.cli import gotask
from gotask.cli.flags import given
from gotask.config import load
from gotask.settings import ServerSettings, Settings, WorkerSettings

FOLDER: Final = Path(__file__).parents[2] / "deployments"
TEXT: Final = (FOLDER / "compose.yaml").read_text()
VARIABLE: Final = re.compile(r"\$\{(\w+):\?[^}]*\}")
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(VARIABLE.sub("secret", TEXT))
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]
PROGRAMS: Final[dict[str, type[Settings]]] = {"server": ServerSettings, "node": WorkerSettings}
NAMES: Final = {"server": "gotask-server", "node": "gotask-worker"}
DOCKERFILE: Final = (FOLDER / "Dockerfile").read_text()


def parsed(*words: str) -> argparse.Namespace:
    return gotask.build().parse_args(list(words))


def settings(name: str) -> Settings:
    """The settings that a service's program would have, by its command and its environment."""
    service = SERVICES[name]
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_takes_what_it_is_given(name: str) -> None:
    held, service = settings(name), SERVICES[name]
    # Its storage is a Redis of this file, with a password
    address = parse(held.url)
    assert [host for host, _ in address.hosts] == ["redis"]
    assert address.login["password"] == "secret"
    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    # It is given time to stop, may not become root, and is restarted
    assert seconds(service["stop_grace_period"]) >= held.shutdown_timeout + 5  # type: ignore[attr-defined]
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert service["restart"] == "unless-stopped"
    # Its health is asked by a command that there is, which gives up before it is given up
    what, program, *words = service["healthcheck"]["test"]
    assert (what, program) == ("CMD", "gotask")
    assert parsed(*words).worker is (name == "node")
    assert seconds(service["healthcheck"]["timeout"]) > 5


def test_the_server_is_reached_where_it_listens() -> None:
    held = settings("server")
    assert isinstance(held, ServerSettings)
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:{held.http_port}:{held.http_port}"]
    assert (held.http_addr, held.api_keys) == ("0.0.0.0", ("secret",))


def test_there_are_two_nodes_that_share_their_locks() -> None:
    held, node = settings("node"), SERVICES["node"]
    assert isinstance(held, WorkerSettings)
    assert node["deploy"]["replicas"] == 2
    assert held.processes == node["cpus"]
    (state,) = re.findall(r"GOTASK_STATE_DIR=(\S+)", DOCKERFILE)
    assert node["volumes"] == [f"nodes:{state}"]
    assert "hostname" not in node
    assert "ports" not in node


def test_redis_keeps_jobs() -> None:
    redis = SERVICES["redis"]
    program, *words = redis["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert program == "redis-server"
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
    assert options["--requirepass"] == redis["environment"]["REDISCLI_AUTH"] == "secret"
    assert bytes_of(redis["mem_limit"]) >= 2 * bytes_of(options["--maxmemory"])
    assert redis["volumes"] == ["redis:/data"]
    assert "ports" not in redis
    assert set(COMPOSE["volumes"]) == {"redis", "nodes"}


def test_every_variable_is_explained() -> None:
    page = (FOLDER / "README.md").read_text()
    for variable in set(VARIABLE.findall(TEXT)):
        assert f"| `{variable}` |" in page
        assert f"{variable}=%s" in page
        assert f"{variable}=%s" in TEXT
    assert "${" not in VARIABLE.sub("", TEXT)


def test_the_image_is_small_unprivileged_and_has_what_it_runs() -> None:
    build, final = re.split(r"(?m)^FROM ", DOCKERFILE)[1:]
    assert build.startswith("python:3.12-slim AS build\n")
    assert final.startswith("python:3.12-slim\n")
    assert "gcc" not in final
    # It has the extras that a server on Redis needs
    (extras,) = re.findall(r"pip install --no-cache-dir '\.\[([\w,]+)\]'", build)
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) == {"server", "redis"} <= set(project["optional-dependencies"])
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
    assert SERVICES["server"]["build"] == {"context": "..", "dockerfile": "deployments/Dockerfile"}
