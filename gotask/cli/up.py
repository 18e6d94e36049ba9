"""`gotask up`: a server and a node as one supervised tree, which is all that a machine needs."""

import argparse
import os
import socket
import sys
from typing import Any, Final

from gotask import __version__, log
from gotask.cli import flags, output, server, store, worker
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
    http, node = flags.settings(ServerSettings, args), flags.settings(WorkerSettings, args)
    log.configure(node.log_level, node.log_format)
    # all that can be wrong is said here, once and before anything starts; also, what answers at the port later is ours
    for address, port, flag in (
        (http.http_addr, http.http_port, "-http-port"),
        (http.http_addr, http.metrics_port, "-metrics-port"),
        (node.health_addr, node.health_port, "-health-port"),
    ):
        server.free_port(address, port, flag)
    if node.app:
        worker.app_exists(node.app)
    promise = store.promise(http.url)
    env = os.environ | inherited(given)
    children = [
        # what a killed server leaves of its processes would keep the port; a node's processes leave by themselves
        Child("server", python("gotask.cli.server"), env, leave_rest=False),
        Child(WORKER, python("gotask.cli.worker"), env),
    ]

    def ready() -> bool:
        if not listening(http):
            return False
        banner(http, node, promise)
        return True

    patience = max(http.shutdown_timeout, node.shutdown_timeout) + 5.0
    return Supervisor(children, patience, ready=ready, until=WORKER if node.burst else "").run()


def inherited(given: dict[str, str]) -> dict[str, str]:
    """Flags for the children as environment, where `ps` does not show their secrets."""
    every = settings_of(ServerSettings) | settings_of(WorkerSettings)
    return {every[name].variable if name in every else f"GOTASK_{name.upper()}": text for name, text in given.items()}


def listening(http: ServerSettings) -> bool:
    try:
        with socket.create_connection((http.http_addr, http.http_port), timeout=0.2):
            return True
    except OSError:
        return False


def banner(http: ServerSettings, node: WorkerSettings, promise: str) -> None:
    url = f"http://{'localhost' if http.http_addr == '127.0.0.1' else http.http_addr}:{http.http_port}"
    slots = f"{node.concurrency} at once in {node.processes} process{'es' if node.processes > 1 else ''}"
    rows = [
        ("API", f"{url}/api/v1/jobs"),
        ("storage", f"{log.scrub(http.url)}: {promise}"),
        ("worker", f"{slots}, tasks of {node.app or 'the built-in examples'}"),
    ]
    if http.metrics_port:
        rows.append(("metrics", f"http://localhost:{http.metrics_port}/metrics"))
    if node.health_port:
        rows.append(("health", f"http://localhost:{node.health_port}/readyz"))
    output.say(f"GoTask {__version__} is up. Ctrl-C stops it and loses nothing.")
    output.sheet(rows)
    key = " -H 'Authorization: Bearer <key>'" if http.api_keys else ""
    body = """'{"type": "echo", "payload": {"message": "Hello, GoTask!"}}'"""
    output.say(f"\nTry:\n  curl -X POST {url}/api/v1/jobs{key} -H 'Content-Type: application/json' -d {body}")
    output.say("  gotask job list\n")
    sys.stdout.flush()
