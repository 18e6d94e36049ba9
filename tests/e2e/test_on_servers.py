"""The programs on a storage that is a server: apart and together, while it is away, and when it comes back."""

import json
import os
import urllib.error
import urllib.request
from contextlib import closing
from email.message import Message
from typing import Any, Final

import pytest

from gotask import GoTask
from tests.e2e.conftest import Ground, http, one_line, until
from tests.servers.fixtures import StartPostgres, StartRedis
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

KINDS: Final = ("redis", "postgres")
CURL: Final = """
curl -X POST http://localhost:8080/api/v1/jobs -H "Content-Type: application/json" \\
  -d '{"type": "math", "payload": {"operation": "add", "a": 10, "b": 5}}'
"""


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Redis | Postgres:
    """A server of each kind that keeps what it has accepted, to be killed."""
    if request.param == "redis":
        start: StartRedis = request.getfixturevalue("start_redis")
        return start(appendonly=True, appendfsync="always")
    begin: StartPostgres = request.getfixturevalue("start_postgres")
    return begin()


def post(ground: Ground, body: dict[str, Any]) -> tuple[int, Message, Any]:
    """Status, headers and body of the answer to a job."""
    asked = urllib.request.Request(
        f"{ground.url}/api/v1/jobs", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.headers, json.loads(e.read())


def ended(ground: Ground, id: str) -> str:
    return str(until(f"the end of {id}", lambda: _end(ground.get(f"/api/v1/jobs/{id}"))))


def _end(answer: tuple[int, Any]) -> str:
    status, job = answer
    return job["status"] if status == 200 and job["status"] in ("SUCCESS", "FAILED") else ""


@pytest.mark.usefixtures("curl")
def test_one_server_two_nodes_and_producers_of_all_kinds(ground: Ground, server: Redis | Postgres) -> None:
    # Given a server and two nodes, each by itself
    programs = ground.apart(server.url, nodes=2)
    # When jobs come by curl, by the command line, and from Python
    posted = json.loads(ground.bash(CURL))["id"]
    submitted = ground.json("job", "submit", "echo", "--payload", '{"message": "hi"}', "--wait")
    with closing(GoTask(server.url)) as app:
        handles = [app.enqueue("echo", {"message": f"{n}"}, priority=n % 3) for n in range(40)]
        assert [handle.result(timeout=30) for handle in handles] == [handle.result() for handle in handles]
    # Then all of them end well, and can be asked for, listed, counted
    assert submitted["status"] == ended(ground, posted) == "SUCCESS"
    assert "15" in json.dumps(ground.get(f"/api/v1/jobs/{posted}")[1]["result"])
    assert ground.get("/api/v1/jobs?status=success&limit=10")[1]["count"] == 10
    until("all are counted", lambda: ground.json("queue", "stats", "default")["success_count"] == 42)
    found = {one["what"]: one["verdict"] for one in json.loads(ground.run("gotask", "doctor", "--json", code=None).stdout)}
    assert found["storage"] == "ok"
    assert [program.stop() for program in programs] == [0, 0, 0]
    assert not any("Traceback" in program.output for program in programs)


def test_a_storage_that_restarts_underneath(ground: Ground, server: Redis | Postgres) -> None:
    # Given a server and a node at work
    programs = ground.apart(server.url)
    first = post(ground, {"type": "echo"})[2]["id"]
    assert ended(ground, first) == "SUCCESS"
    # When the storage is gone
    server.kill()
    status, headers, body = post(ground, {"type": "echo", "id": "again"})
    # Then the API says so in a sentence, and when to try again
    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    assert headers["Content-Type"] == "application/problem+json"
    assert body["detail"].endswith(".")
    assert until("unready", lambda: ground.get("/readyz")[0] == 503)
    assert ground.get("/livez")[0] == 200
    # When it is back, then all goes on by itself, and what was accepted is there
    server.start()
    until("ready", lambda: ground.get("/readyz")[0] == 200)
    assert until("accepted", lambda: post(ground, {"type": "echo", "id": "again"})[0] in (200, 201))
    assert ended(ground, "again") == "SUCCESS"
    assert ground.get(f"/api/v1/jobs/{first}")[1]["status"] == "SUCCESS"
    assert [program.stop() for program in programs] == [0, 0]
    assert not any("Traceback" in program.output for program in programs)


def test_programs_that_start_while_the_storage_is_away(ground: Ground, server: Redis | Postgres) -> None:
    # Given a storage that is not there yet
    server.kill()
    ground.env["GOTASK_STORAGE"] = server.url
    # Then what is asked once, or starts a tree, ends with a sentence
    assert "cannot be reached (" in one_line(ground.run("gotask", "up", code=2).stderr)
    assert "cannot be reached (" in ground.run("gotask", "job", "list", code=None).stderr
    # And a server and a node wait for it, and say so
    programs = [ground.start("gotask-server"), ground.start("gotask-worker", "-c", "1")]
    for program in programs:
        until("it says that it waits", lambda it=program: "Starting all the same, and waiting for the storage: " in it.output)
    until("the server listens", lambda: ground.get("/livez")[0] == 200)
    assert ground.get("/readyz")[0] == 503
    # When it comes, then they work
    server.start()
    until("both are ready", lambda: ground.get("/readyz")[0] == http(f"http://127.0.0.1:{ground.health}/readyz")[0] == 200)
    assert ground.json("job", "submit", "echo", "--wait", "--wait-timeout", "60")["status"] == "SUCCESS"
    assert [program.stop() for program in programs] == [0, 0]
    assert not any("Traceback" in program.output for program in programs)


LIBRARIES: Final = {"redis": ("redis", "redis", "redis"), "postgres": ("psycopg", "psycopg", "postgres")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_library_that_is_missing_is_named(ground: Ground, kind: str) -> None:
    # Given an installation without the client of that server
    module, named, extra = LIBRARIES[kind]
    (ground.folder / f"{module}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{module}'\", name='{module}')\n")
    ground.env["PYTHONPATH"] = f"{ground.folder}{os.pathsep}{ground.env['PYTHONPATH']}"
    commands: list[list[str]] = [["gotask-server"], ["gotask-worker"], ["gotask", "up"], ["gotask", "job", "list"]]
    if kind == "postgres":
        commands.append(["gotask", "migrate", "status"])
    for name, *argv in commands:
        done = ground.run(name, *argv, f"-storage={kind}", code=2)
        assert one_line(done.stderr) == (
            f"{name}: The storage {kind} needs {named}, which is not installed: pip install 'gotask[{extra}]'."
        )
    # Then everything else works without it
    ground.up("-storage=sqlite")
    assert ground.json("job", "submit", "echo", "--wait")["status"] == "SUCCESS"
