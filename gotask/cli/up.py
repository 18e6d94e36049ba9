"""`gotask up`: a server and a node as one supervised tree, which is all that a machine needs."""

import argparse
import os
import socket
import sys
from typing import Any, Final

from gotask import __version__, log
from gotask.cli import flags, output, store
from gotask.cli.supervisor import Child, Supervisor, python
from gotask.settings import ServerSettings, WorkerSettings, settings_of

EXAMPLE: Final = """
gotask up
gotask up -A shop.tasks:app -c 8
gotask up -storage=memory -http-port=8000
"""
WORKER: Final = "worker"


def add(sub: Any) -> None:
    about = "Run a server and a worker together, supervised, until Ctrl-C."
    flags.command(sub, "up", run, about, EXAMPLE, ServerSettings, WorkerSettings)


def run(args: argparse.Namespace) -> int:
    given = flags.given(args)
    server, worker = flags.settings(ServerSettings, args), flags.settings(WorkerSettings, args)
    log.configure(worker.log_level, worker.log_format)
    promise = store.promise(server.url)
    env = os.environ | inherited(given)
    children = [
        # what a killed server leaves of its processes would keep the port; a node's processes leave by themselves
        Child("server", python("gotask.cli.server"), env, leave_rest=False),
        Child(WORKER, python("gotask.cli.worker"), env),
    ]

    def ready() -> bool:
        if not listening(server):
            return False
        banner(server, worker, promise)
        return True

    patience = max(server.shutdown_timeout, worker.shutdown_timeout) + 5.0
    return Supervisor(children, patience, ready=ready, until=WORKER if worker.burst else "").run()


def inherited(given: dict[str, str]) -> dict[str, str]:
    """Flags for the children as environment, where `ps` does not show their secrets."""
    every = settings_of(ServerSettings) | settings_of(WorkerSettings)
    return {every[name].variable if name in every else f"GOTASK_{name.upper()}": text for name, text in given.items()}


def listening(server: ServerSettings) -> bool:
    try:
        with socket.create_connection((server.http_addr, server.http_port), timeout=0.2):
            return True
    except OSError:
        return False


def banner(server: ServerSettings, worker: WorkerSettings, promise: str) -> None:
    url = f"http://{'localhost' if server.http_addr == '127.0.0.1' else server.http_addr}:{server.http_port}"
    rows = [
        ("API", f"{url}/api/v1/jobs"),
        ("storage", f"{log.scrub(server.url)}: {promise}"),
        (
            "worker",
            f"{worker.concurrency} at once in {worker.processes} processes, tasks of {worker.app or 'the built-in examples'}",
        ),
    ]
    if server.metrics_port:
        rows.append(("metrics", f"http://localhost:{server.metrics_port}/metrics"))
    if worker.health_port:
        rows.append(("health", f"http://localhost:{worker.health_port}/readyz"))
    output.say(f"GoTask {__version__} is up. Ctrl-C stops it and loses nothing.")
    output.sheet(rows)
    key = " -H 'Authorization: Bearer <key>'" if server.api_keys else ""
    body = """'{"type": "echo", "payload": {"message": "Hello, GoTask!"}}'"""
    output.say(f"\nTry:\n  curl -X POST {url}/api/v1/jobs{key} -H 'Content-Type: application/json' -d {body}")
    output.say("  gotask job list\n")
    sys.stdout.flush()
