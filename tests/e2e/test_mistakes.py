"""What a user gets wrong: one sentence, and an exit code that says whether trying again would help."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT, Ground, command, one_line, until


@pytest.mark.parametrize(
    ("name", "argv", "sentence"),
    [
        ("gotask-server", ["-http-port=x"], "gotask-server: -http-port is 'x'; it takes a whole number from 1 to 65535."),
        ("gotask-server", ["--htp-port=1"], "gotask-server: There is no flag --htp-port; did you mean --http-port? "),
        ("gotask-server", ["-http-addr", "0.0.0.0"], "gotask-server: http-addr is 0.0.0.0, which others can reach: "),
        ("gotask-worker", ["-concurrency", "0.5"], "gotask-worker: -concurrency is '0.5'; it takes a whole number"),
        ("gotask-server", ["-http-prt=1"], "gotask-server: There is no flag -http-prt; did you mean -http-port? "),
        ("gotask-worker", ["-A", "nosuchmodule:app"], "gotask-worker: There is no module 'nosuchmodule' for -app "),
        ("gotask-worker", ["-A", "nosuchmodule"], "gotask-worker: -app is 'nosuchmodule'; it takes module:variable"),
        ("gotask-worker", ["-P", "gevent"], "gotask-worker: There is no pool to choose: "),
        ("gotask-server", ["-storage=oracle://x"], "gotask-server: There is no storage called 'oracle'; "),
        ("gotask", ["up", "-storage=oracle://x"], "gotask: There is no storage called 'oracle'; "),
        (
            "gotask",
            ["up", "-storage=postgres", "-postgres-port=1"],
            "gotask: PostgreSQL at postgres://postgres@localhost:1/taskqueue cannot be reached (",
        ),
        ("gotask", ["up", "-storage=postgres://h/d?schem=x"], "gotask: The storage postgres://h/d cannot be used: "),
        (
            "gotask",
            ["up", "-storage=redis", "-redis-addr=127.0.0.1:1"],
            "gotask: Redis at redis://127.0.0.1:1 cannot be reached (",
        ),
        ("gotask", ["up", "-storage=redis://h?shard=2"], "gotask: The storage redis://h cannot be used: there is no "),
        ("gotask", ["job", "submit", "echo", "--payload", "{"], "gotask: --payload is not JSON: "),
        (
            "gotask",
            ["job", "submit", "echo", "--payload", "@no.json"],
            "gotask: --payload names no.json, which cannot be read: ",
        ),
        ("gotask", ["job", "submit", "echo", "--priority", "10"], "gotask: --priority does not fit: "),
        ("gotask", ["job", "submit", "no spaces allowed"], "gotask: --type does not fit: "),
        (
            "gotask",
            ["job", "list", "--status", "DONE"],
            "gotask: There is no status 'DONE'; it is one of: SCHEDULED, PENDING, ",
        ),
        ("gotask", ["job", "cancel", "--filter", "sttus=FAILED"], "gotask: --filter knows no 'sttus'; did you mean status?"),
        ("gotask", ["job", "cancel"], "gotask: Name the jobs to cancel by their ids, or all that a --filter finds"),
        ("gotask", ["jobs"], "gotask: There is no command jobs; did you mean job? "),
    ],
)
def test_a_wrong_flag(ground: Ground, name: str, argv: list[str], sentence: str) -> None:
    done = ground.run(name, *argv, code=2)
    assert done.stdout == ""
    assert one_line(done.stderr).startswith(sentence)


def test_a_wrong_variable_and_a_wrong_key(ground: Ground) -> None:
    ground.env["GOTASK_LEASE"] = "soon"
    assert one_line(ground.run("gotask-worker", code=2).stderr).startswith(
        "gotask-worker: GOTASK_LEASE is 'soon'; it takes seconds"
    )
    del ground.env["GOTASK_LEASE"]
    (ground.folder / "gotask.toml").write_text("[worker]\nconcurency = 4\n")
    for argv in (["up"], ["config", "validate"], ["worker"]):
        said = one_line(ground.run("gotask", *argv, code=2).stderr)
        assert said == "gotask: gotask.toml has an unknown key worker.concurency; did you mean concurrency?"


def test_a_port_in_use(ground: Ground) -> None:
    # Given a port that somebody else listens on
    with socket.create_server(("127.0.0.1", ground.http)):
        # When a server, or everything, is started on it
        for name, argv in (("gotask-server", []), ("gotask", ["up"])):
            done = ground.run(name, *argv, code=2)
            # Then it says so, ends, and neither tries for ever nor takes the other program for its own
            said = f"{name}: Port {ground.http} on 127.0.0.1 is in use by another program; choose another with -http-port."
            assert (done.stdout, one_line(done.stderr)) == ("", said)


BROKEN = {
    "missing": ("import nosuchthing\n", "'nosuchthing' is not installed, and is imported at broken.py, line 1."),
    "syntax": ("x = 1\ndef f(:\n", "SyntaxError at broken.py, line 2: invalid syntax."),
    "raises": ("import json\njson.loads('{')\n", "JSONDecodeError at broken.py, line 2: Expecting property name"),
    "exits": ("import sys\nsys.exit('no')\n", "it ends the program at broken.py, line 2."),
    "dies": ("import os\nos.kill(os.getpid(), 9)\n", "its import ended the process by signal 9."),
    "no app": ("app = 1\n", "There is no GoTask app called 'app' in broken; "),
    "no task": ("from gotask import GoTask\napp = GoTask()\n@app.task\ndef f(*a): ...\n", "has the parameter *a"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_an_app_that_does_not_import(ground: Ground, mistake: str) -> None:
    # Given an app module with a mistake in it
    text, says = BROKEN[mistake]
    (ground.folder / "broken.py").write_text(text)
    # When a node is started with it, alone and under up
    for name, argv in (("gotask-worker", []), ("gotask", ["up"])):
        done = ground.run(name, *argv, "-A", "broken:app", code=2)
        # Then it names the mistake and ends, before anything has started
        assert done.stdout == ""
        assert says in done.stderr.splitlines()[-1]
        assert "INFO" not in done.stderr


def test_a_storage_that_takes_no_write(ground: Ground) -> None:
    # Given a disk on which no file can grow, as if it were full
    def run(*argv: str) -> "subprocess.CompletedProcess[str]":
        script = f"ulimit -f 0; exec {' '.join([*command(argv[0]), *argv[1:]])}"
        return subprocess.run(
            ["bash", "-c", script], cwd=ground.folder, env=ground.env, capture_output=True, text=True, timeout=60
        )

    ground.gotask("migrate")
    # When something is started there
    for name, *argv in (("gotask", "up"), ("gotask-server",), ("gotask-worker",)):
        done = run(name, *argv)
        # Then it says so and ends
        assert (done.returncode, done.stdout) == (2, "")
        assert "default.db" in one_line(done.stderr)
    # And doctor knows
    done = run("gotask", "doctor")
    assert done.returncode == 1
    assert any(line.startswith("storage ") and " bad " in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("place", [">&-", ">/dev/full"])
def test_an_output_that_takes_nothing(ground: Ground, place: str) -> None:
    id = ground.json("job", "submit", "echo")["id"]
    for argv in ("job list", f"job show {id}", "job list --json", "config validate"):
        script = f"{' '.join(command('gotask'))} {argv} {place}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=ground.folder, env=ground.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert one_line(done.stderr).startswith("gotask: The output could not be written (")


def test_ctrl_d_means_no(ground: Ground) -> None:
    ours, theirs = os.openpty()
    program = subprocess.Popen(
        [*command("gotask"), "queue", "purge", "default"],
        cwd=ground.folder,
        env=ground.env,
        stdin=theirs,
        stderr=theirs,
        stdout=theirs,
    )
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 100)
    os.write(ours, b"\x04")
    assert program.wait(30) == 1
    assert b"Nothing was done" in os.read(ours, 1000)


def test_a_child_that_cannot_start_is_given_up() -> None:
    # Given a supervisor of a program that ends at once, each time
    script = """
import os, sys
from gotask.cli.supervisor import Child, Supervisor
child = Child("thing", [sys.executable, "-c", "raise SystemExit(7)"], os.environ, delay=0.001)
sys.exit(Supervisor([child], 1.0, ready=lambda: False).run())
"""
    # When it runs
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    # Then it does not try for ever
    assert done.returncode == 1
    assert "The thing ended 5 times before it was ready" in done.stderr


def test_unknown_things_are_not_found(ground: Ground) -> None:
    said = one_line(ground.run("gotask", "job", "show", "nosuchjob", code=1).stderr)
    assert said.startswith("gotask: There is no job 'nosuchjob'")
    said = one_line(ground.run("gotask", "queue", "stats", "nosuchqueue", code=1).stderr)
    assert said.startswith("gotask: There is no queue 'nosuchqueue'")


def test_nothing_is_deleted_unasked(ground: Ground) -> None:
    id = ground.json("job", "submit", "echo")["id"]
    assert "add --yes" in one_line(ground.run("gotask", "job", "delete", id, code=1).stderr)
    assert "add --yes" in one_line(ground.run("gotask", "queue", "purge", "default", code=1).stderr)
    assert ground.json("job", "show", id)["status"] == "PENDING"


def test_a_closed_pipe_is_no_error(ground: Ground) -> None:
    # Given more output than a pipe holds
    for _ in range(3):
        ground.gotask("job", "submit", "echo", "--payload", '{"x": "' + "y" * 30_000 + '"}')
    gotask = " ".join(command("gotask"))
    # When its reader leaves early
    done = subprocess.run(
        f"{gotask} job list --json | head -c 10 >/dev/null",
        shell=True,
        cwd=ground.folder,
        env=ground.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Then nothing is complained about
    assert done.stderr == ""


def test_ctrl_c_ends_a_wait_quietly(ground: Ground) -> None:
    id = ground.json("job", "submit", "echo")["id"]
    program = ground.start("gotask", "job", "wait", id)
    # what it says before it waits: on a busy machine, one that is still being loaded would be interrupted otherwise
    until("it is about to wait", lambda: "No worker is running" in program.output)
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(0.5)
    assert program.stop(signal.SIGINT) == 130
    assert "Traceback" not in program.output


def test_a_wait_that_takes_too_long(ground: Ground) -> None:
    id = ground.json("job", "submit", "echo")["id"]
    done = ground.run("gotask", "job", "wait", id, "--wait-timeout", "0.2", code=3)
    assert done.stderr.splitlines() == [
        "gotask: No worker is running: start one with `gotask up` or `gotask worker`.",
        f"gotask: Job {id} had not ended in time: it is PENDING.",
    ]
