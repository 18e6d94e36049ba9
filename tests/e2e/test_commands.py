"""The commands, one after the other, on a storage that nobody serves: tables for people, JSON for programs."""

import json

import pytest

from tests.e2e.conftest import Ground


def test_the_life_of_a_job_on_the_command_line(ground: Ground) -> None:
    # Given a job that was submitted
    id = ground.gotask("job", "submit", "echo", "--payload", '{"message": "hi"}', "--priority", "2", "--id", "mine").strip()
    assert id == "mine"
    # When it is submitted again, it is the same job; with another body it is refused
    assert (
        ground.gotask("job", "submit", "echo", "--payload", '{"message": "hi"}', "--priority", "2", "--id", "mine").strip()
        == "mine"
    )
    ground.gotask("job", "submit", "echo", "--payload", '{"message": "ho"}', "--id", "mine", code=1)
    # Then it is listed and shown, for people and for programs
    assert ground.json("job", "list")["count"] == ground.json("job", "list", "--status", "pending")["count"] == 1
    table = ground.gotask("job", "list")
    assert table.splitlines()[0].split()[:4] == ["id", "type", "queue", "status"]
    assert table.splitlines()[1].split()[:4] == ["mine", "echo", "default", "PENDING"]
    shown = ground.json("job", "show", "mine")
    assert (shown["payload"], shown["priority"], shown["status"]) == ({"message": "hi"}, 2, "PENDING")
    assert '{"message": "hi"}' in ground.gotask("job", "show", "mine")
    assert "No worker is running" in ground.gotask("job", "show", "mine")
    # When it is cancelled, put back and deleted
    assert ground.gotask("job", "cancel", "mine").strip() == "1 job is cancelled or asked to stop."
    assert ground.json("job", "show", "mine")["status"] == "CANCELLED"
    ground.gotask("job", "retry", "mine")
    assert ground.json("job", "show", "mine")["status"] == "PENDING"
    ground.gotask("job", "delete", "mine", "--yes")
    # Then it is gone
    ground.gotask("job", "show", "mine", code=1)
    assert ground.gotask("job", "list").strip() == "There are no such jobs."


def test_payloads_come_from_files_and_pipes(ground: Ground) -> None:
    (ground.folder / "report.json").write_text('{"type": "daily"}\n')
    for argument in ("@report.json", "-"):
        id = ground.gotask("job", "submit", "report", "--payload", argument, stdin='{"type": "daily"}').strip()
        assert ground.json("job", "show", id)["payload"] == {"type": "daily"}


def test_bulk_by_filter(ground: Ground) -> None:
    # Given jobs in two queues
    mails = {ground.gotask("job", "submit", "echo", "--queue", "mail").strip() for _ in range(3)}
    other = ground.gotask("job", "submit", "echo").strip()
    # When it is asked what a filter would do
    dry = ground.json(
        "job", "cancel", "--filter", "queue=mail", "--filter", "status=pending".upper().replace("STATUS", "status"), "--dry-run"
    )
    # Then nothing happened yet
    assert set(dry["ids"]) == mails
    assert ground.json("queue", "stats", "mail")["pending_count"] == 3
    # When it is done
    assert ground.json("job", "cancel", "--filter", "queue=mail", "--yes") == {"done": 3, "refused": []}
    # Then those, and only those, are cancelled
    assert ground.json("queue", "stats", "mail")["cancelled_count"] == 3
    assert ground.json("job", "show", other)["status"] == "PENDING"


def test_bulk_by_id_tells_what_was_refused(ground: Ground) -> None:
    good = ground.gotask("job", "submit", "echo").strip()
    done = ground.run("gotask", "job", "cancel", good, "nosuchjob", code=1)
    assert done.stdout.strip() == "1 job is cancelled or asked to stop."
    assert "There is no job 'nosuchjob'" in done.stderr


def test_queues(ground: Ground) -> None:
    made = ground.json(
        "queue", "create", "mail", "--max-workers", "20", "--retry-strategy", "fixed", "--dead-letter-queue", "dead"
    )
    assert (made["max_workers"], made["retry_strategy"], made["dead_letter_queue"]) == (20, "fixed", "dead")
    ground.gotask("queue", "create", "mail", code=1)
    changed = ground.json("queue", "set", "mail", "--weight", "5")
    assert (changed["weight"], changed["max_workers"]) == (5, 20)
    ground.gotask("queue", "pause", "mail")
    assert ground.json("queue", "show", "mail")["paused"] is True
    shown = ground.gotask("queue", "list").splitlines()
    assert "No worker serves queue 'mail'." in shown
    assert not [line for line in shown if line != line.rstrip()]
    ground.gotask("queue", "resume", "mail")
    ground.gotask("job", "submit", "echo", "--queue", "mail")
    ground.gotask("queue", "delete", "mail", "--yes", code=1)
    assert ground.gotask("queue", "purge", "mail", "--yes").startswith("1 job")
    ground.gotask("queue", "delete", "mail", "--yes")
    assert ground.json("worker", "list") == {"workers": [], "count": 0}


@pytest.mark.parametrize("storage", ["sqlite", "sqlite:///{folder}/jobs.db"])
def test_where_jobs_are(ground: Ground, storage: str) -> None:
    storage = storage.format(folder=ground.folder)
    id = ground.gotask("job", "submit", "echo", f"-storage={storage}").strip()
    assert ground.json("job", "show", id, "--storage", storage)["id"] == id
    assert storage.partition("://")[0] in ground.gotask("migrate", "-storage", storage)
    findings = {
        finding["what"]: finding for finding in json.loads(ground.gotask("doctor", "--json", f"-storage={storage}", code=None))
    }
    assert findings["storage"]["verdict"] == "ok"
    assert findings["sqlite"]["verdict"] == findings["disk"]["verdict"] == "ok"
    assert ground.json("worker", "list", "-storage", storage)["count"] == 0  # what it wrote to try it is gone


def test_text_of_others_cannot_drive_the_terminal(ground: Ground) -> None:
    # Given a job whose reason to be looked at is full of control characters
    ground.gotask("job", "submit", "echo", "--unique-key", "a\x1b[2J\r\u202eb", "--payload", '{"x": "\\u001b[31m"}')
    # When it is shown
    id = ground.json("job", "list")["jobs"][0]["id"]
    for output in (ground.gotask("job", "show", id), ground.gotask("job", "list")):
        # Then they are gone
        assert not {"\x1b", "\r", "\u202e"} & set(output)


def test_config_show(ground: Ground) -> None:
    (ground.folder / "gotask.toml").write_text("lease = 45\n")
    ground.env["GOTASK_API_KEYS"] = "very-secret"
    shown = {row["setting"]: row for row in ground.json("config", "show", "-c=3")}
    assert (shown["lease"]["value"], shown["lease"]["origin"]) == ("45.0", "gotask.toml")
    assert (shown["concurrency"]["value"], shown["concurrency"]["origin"]) == ("3", "flag -concurrency")
    assert shown["http_port"]["origin"] == "environment GOTASK_HTTP_PORT"
    assert "very-secret" not in ground.gotask("config", "show", "--origin")
    assert ground.gotask("config", "validate").strip() == "The configuration is valid."
