"""The commands of the original's page, as they are written there but for the port."""

import json
import shutil
import subprocess
from typing import Any

import pytest
from served import Server

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

JOBS = {
    "echo": """
curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "type": "echo",
    "queue": "default",
    "payload": {"message": "Hello!"}
  }'""",
    "math": """
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
  }'""",
    "email": """
curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "type": "email",
    "queue": "default",
    "payload": {
      "to": "user@example.com",
      "subject": "Test Email",
      "body": "This is a test email"
    }
  }'""",
    "report": """
curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "type": "report",
    "queue": "default",
    "payload": {"type": "daily"},
    "scheduled_at": "'$(date -u -d '+1 hour' +%Y-%m-%dT%H:%M:%SZ)'"
  }'""",
}
CREATE_QUEUE = """
curl -X POST http://localhost:8080/api/v1/queues \\
  -H "Content-Type: application/json" \\
  -d '{
    "name": "high_priority",
    "max_workers": 20,
    "max_retries": 5,
    "retry_strategy": "exponential",
    "priority": 2,
    "weight": 10
  }'"""


def shell(server: Server, command: str) -> Any:
    typed = command.replace("localhost:8080", f"localhost:{server.http}").replace("curl ", "curl -sS -f ")
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("type", JOBS)
def test_creating_jobs(server: Server, type: str) -> None:
    # When the command is typed, then the job is there, waiting for a worker or for its time
    job = shell(server, JOBS[type])
    assert (job["type"], job["queue"], job["priority"]) == (type, "default", 1)
    assert job["status"] == ("SCHEDULED" if type == "report" else "PENDING")
    # And its status can be asked for
    assert shell(server, f"curl http://localhost:8080/api/v1/jobs/{job['id']}")["id"] == job["id"]


def test_managing_queues(server: Server) -> None:
    # When a queue is made, then it has the settings that were asked for
    queue = shell(server, CREATE_QUEUE)
    assert {name: queue[name] for name in ("name", "max_workers", "max_retries", "retry_strategy", "priority", "weight")} == {
        "name": "high_priority",
        "max_workers": 20,
        "max_retries": 5,
        "retry_strategy": "exponential",
        "priority": 2,
        "weight": 10,
    }
    # When the default queue, which nobody made, is paused and resumed, then its stats show it
    assert "message" in shell(server, "curl -X POST http://localhost:8080/api/v1/queues/default/pause")
    assert shell(server, "curl http://localhost:8080/api/v1/queues/default/stats")["paused"] is True
    assert "message" in shell(server, "curl -X POST http://localhost:8080/api/v1/queues/default/resume")
    stats = shell(server, "curl http://localhost:8080/api/v1/queues/default/stats")
    assert (stats["queue_name"], stats["paused"]) == ("default", False)
    assert {"pending_count", "running_count", "success_count", "failed_count"} <= set(stats)


def test_asking_for_health_and_metrics(server: Server) -> None:
    assert shell(server, "curl http://localhost:8080/health") == {"status": "ok"}
    assert shell(server, "curl http://localhost:8080/ready") == {"status": "ready"}
    assert "jobs" in shell(server, "curl http://localhost:8080/api/v1/metrics")
