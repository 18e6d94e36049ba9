"""`gotask up` as a user meets it: the original's curl commands, restarts, kills, and an end that loses nothing."""

import json
import os
import signal
import time

import pytest

from tests.e2e.conftest import Ground, Program, http, offspring, until

SEED_ECHO = """
curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "type": "echo",
    "queue": "default",
    "payload": {"message": "Hello, GoTask!"},
    "priority": 1
  }'
"""
SEED_MATH = """
curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "type": "math",
    "queue": "default",
    "payload": {
      "operation": "add",
      "a": 10,
      "b": 5
    }
  }'
"""
SEED_SCHEDULED = """
curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "type": "report",
    "queue": "default",
    "payload": {"type": "daily"},
    "scheduled_at": "'$(date -u -d '+1 hour' +%Y-%m-%dT%H:%M:%SZ)'"
  }'
"""
SEED_QUEUE = """
curl -X POST http://localhost:8080/api/v1/queues \\
  -H "Content-Type: application/json" \\
  -d '{
    "name": "high_priority",
    "max_workers": 20,
    "max_retries": 5,
    "retry_strategy": "exponential",
    "priority": 2,
    "weight": 10
  }'
"""


NAP = """\
import time
from gotask import GoTask

app = GoTask()

@app.task
def nap(s: float) -> str:
    time.sleep(s)
    return "rested"
"""


def ended(ground: Ground, id: str) -> dict[str, object]:
    def look() -> dict[str, object] | None:
        status, job = ground.get(f"/api/v1/jobs/{id}")
        return job if status == 200 and job["status"] in ("SUCCESS", "FAILED", "CANCELLED", "EXPIRED") else None

    job = until(f"the end of job {id}", look)
    assert job is not None
    return job


@pytest.mark.usefixtures("curl")
def test_the_commands_of_the_original(ground: Ground) -> None:
    up = ground.up("-c", "2")
    # Jobs
    echo = ended(ground, json.loads(ground.bash(SEED_ECHO))["id"])
    assert (echo["status"], echo["priority"]) == ("SUCCESS", 1)
    assert "Hello, GoTask!" in json.dumps(echo["result"])
    assert "15" in json.dumps(ended(ground, json.loads(ground.bash(SEED_MATH))["id"])["result"])
    later = json.loads(ground.bash(SEED_SCHEDULED))
    assert later["status"] == "SCHEDULED"
    assert json.loads(ground.bash(f"curl http://localhost:8080/api/v1/jobs/{later['id']}"))["id"] == later["id"]
    assert json.loads(ground.bash("curl http://localhost:8080/api/v1/jobs"))["count"] == 3
    ground.bash(f"curl -X POST http://localhost:8080/api/v1/jobs/{later['id']}/cancel")
    assert ended(ground, later["id"])["status"] == "CANCELLED"
    assert "message" in json.loads(ground.bash(f"curl -X DELETE http://localhost:8080/api/v1/jobs/{later['id']}"))
    # Queues
    assert json.loads(ground.bash(SEED_QUEUE))["max_workers"] == 20
    ground.bash("curl -X POST http://localhost:8080/api/v1/queues/default/pause")
    waiting = json.loads(ground.bash(SEED_ECHO))["id"]
    assert json.loads(ground.bash("curl http://localhost:8080/api/v1/queues/default/stats"))["pending_count"] == 1
    ground.bash("curl -X POST http://localhost:8080/api/v1/queues/default/resume")
    assert ended(ground, waiting)["status"] == "SUCCESS"
    # Monitoring
    ground.bash("curl http://localhost:8080/health && curl http://localhost:8080/ready")
    assert "jobs" in json.loads(ground.bash("curl http://localhost:8080/api/v1/metrics"))
    assert "taskqueue_jobs_created_total" in ground.bash("curl http://localhost:9090/metrics")
    # And the banner said what there is to try
    assert f"{ground.url.replace('127.0.0.1', 'localhost')}/api/v1/jobs" in up.output
    assert up.stop() == 0


def test_the_commands_over_http(ground: Ground) -> None:
    ground.up("-c", "2")
    storage = f"-storage={ground.url}"
    done = ground.json("job", "submit", "echo", "--payload", '{"message": "hi"}', "--wait", storage)
    assert done["status"] == "SUCCESS"
    assert ground.json("job", "list", storage)["count"] == 1
    assert ground.gotask("job", "list", storage).splitlines()[1].split()[3] == "SUCCESS"
    assert ground.json("queue", "stats", "default", storage)["success_count"] == 1
    ground.gotask("queue", "set", "default", "--weight", "3", storage)
    assert ground.json("queue", "show", "default", storage)["weight"] == 3
    ground.gotask("job", "show", "nosuchjob", storage, code=1)
    assert until("the node's report", lambda: ground.json("worker", "list", storage)["count"]) == 1
    ground.gotask("health")
    assert ground.json("health", "--worker")["ready"] is True
    waits = ground.run("gotask", "job", "submit", "echo", "--queue", "mail", "--wait", "--wait-timeout", "0", storage, code=3)
    assert "No worker serves queue 'mail'" in waits.stderr
    waits = ground.run("gotask", "job", "submit", "send", "--wait", "--wait-timeout", "0", storage, code=3)
    assert "knows the type 'send'" in waits.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_restart_forgets_nothing(ground: Ground, number: int) -> None:
    # Given jobs that are done, and jobs that wait in a paused queue
    up = ground.up("-c", "2")
    done = ground.json("job", "submit", "echo", "--payload", '{"message": "1"}', "--wait")["id"]
    ground.gotask("queue", "create", "later")
    ground.gotask("queue", "pause", "later")
    waiting = [ground.gotask("job", "submit", "echo", "--queue", "later").strip() for _ in range(5)]
    family = [up.process.pid, *up.children().values()]
    # When everything is stopped, or killed, and started again
    assert up.stop(number) == (-9 if number == signal.SIGKILL else 0)
    until("nothing left running", lambda: not [pid for pid in family if alive(pid)])
    ground.up("-c", "2", "-Q", "default,later")
    # Then all of it is there, and what waited runs
    assert ground.json("job", "show", done)["status"] == "SUCCESS"
    ground.gotask("queue", "resume", "later")
    ground.gotask("job", "wait", *waiting, "--wait-timeout", "60")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", ["server", "worker"])
def test_what_is_killed_is_started_again(ground: Ground, name: str) -> None:
    # Given a running tree
    up = ground.up("-c", "2")
    old = up.children()[name]
    # When its server, or its node, is killed without a warning
    os.kill(old, signal.SIGKILL)
    # Then another takes its place, and work goes on
    until(f"another {name}", lambda: up.children().get(name, old) != old)
    ground.ready(up)
    assert (
        ground.json("job", "submit", "echo", "--payload", '{"message": "hi"}', "--wait", "--wait-timeout", "60")["status"]
        == "SUCCESS"
    )
    assert f"the {name} ended by signal 9" in up.output
    assert up.stop() == 0


def test_jobs_that_run_are_let_finish(ground: Ground) -> None:
    # Given a job under way that takes a second
    (ground.folder / "slow.py").write_text(NAP)
    up = ground.up("-A", "slow:app", "-c", "1")
    # The banner comes when the node is ready, and suggests a job that it can run
    until("the banner", lambda: """-d '{"type":"nap","payload":{"s":1.5}}'""" in up.output)
    id = ground.gotask("job", "submit", "nap", "--payload", '{"s": 1.5}').strip()
    until("the job to start", lambda: ground.get(f"/api/v1/jobs/{id}")[1]["status"] == "RUNNING")
    # When the tree is asked to stop
    assert up.stop() == 0
    # Then the job had the time it needed
    job = ground.json("job", "show", id)
    assert (job["status"], job["result"], job["retry_count"], job["crashes"]) == ("SUCCESS", "rested", 0, 0)


def test_a_second_signal_means_now(ground: Ground) -> None:
    (ground.folder / "slow.py").write_text(NAP)
    up = ground.up("-A", "slow:app", "-c", "1")
    id = ground.gotask("job", "submit", "nap", "--payload", '{"s": 60}').strip()
    until("the job to start", lambda: ground.get(f"/api/v1/jobs/{id}")[1]["status"] == "RUNNING")
    # When it is asked twice
    up.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    started = time.monotonic()
    up.stop(signal.SIGINT)
    # Then it does not wait for the job, which is not lost
    assert time.monotonic() - started < 10
    assert ground.json("job", "show", id)["status"] in ("PENDING", "RUNNING")


def test_nothing_is_left_behind(ground: Ground) -> None:
    up = ground.up("-c", "2")
    family = [pid for child in up.children().values() for pid in (child, *offspring(child))]
    assert len(family) > 3
    up.stop(signal.SIGKILL)
    until("all to leave", lambda: not [pid for pid in family if alive(pid)])


def test_burst_runs_what_there_is_and_ends(ground: Ground) -> None:
    ids = [ground.gotask("job", "submit", "echo", "--payload", '{"message": "hi"}').strip() for _ in range(3)]
    worker = ground.start("gotask-worker", "--burst", "-c", "2")
    assert worker.ended() == 0
    ground.gotask("job", "wait", *ids, "--wait-timeout", "0")


def test_server_and_workers_apart(ground: Ground) -> None:
    # Given a server and two nodes, started each by itself, with the original's spelling of flags
    storage = f"-storage=sqlite:///{ground.folder}/shared.db"
    ground.start("gotask-server", storage, f"-http-port={ground.http}")
    nodes: list[Program] = [
        ground.start("gotask-worker", storage, "-queues=default", "-concurrency=1", f"-worker-id=node{n}", "-health-port=0")
        for n in range(2)
    ]
    until("the server", lambda: ground.get("/ready")[0] == 200)
    until("both nodes", lambda: ground.get("/api/v1/workers")[1]["count"] == 2)
    # When jobs come in and one node is killed
    ids = [
        ground.json("job", "submit", "echo", "--payload", '{"message": "hi"}', f"-storage={ground.url}")["id"] for _ in range(5)
    ]
    nodes[0].process.kill()
    # Then all of them end
    for id in ids:
        assert ended(ground, id)["status"] == "SUCCESS"
    assert http(f"http://127.0.0.1:{ground.metrics}/metrics")[0] == 200
