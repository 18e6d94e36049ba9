"""`gotask up`: a server and a node as one supervised tree, which is all that a machine needs."""

import argparse
import os
import shlex
import sys
from contextlib import closing
from typing import Any, Final

import msgspec

from gotask import __version__, backends, log
from gotask.cli import exits, flags, output, server, store, worker
from gotask.cli.appcheck import Sample
from gotask.cli.supervisor import Child, Supervisor, python
from gotask.errors import GotaskError
from gotask.model import Worker
from gotask.settings import ServerSettings, WorkerSettings, settings_of

EXAMPLE: Final = """
gotask up
gotask up -A shop.tasks:app -c 8
gotask up -storage=memory -http-port=8000
"""
WORKER: Final = "worker"
READY_S: Final = 0.5  #: seconds a child may take to say whether it is ready, before it is asked again


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
    worker.able()
    promise = store.usable(http.url)
    sample = worker.load(node)
    env = os.environ | inherited(given)
    children = [
        # what a killed server leaves of its processes would keep the port; a node's processes leave by themselves
        Child("server", python("gotask.cli.server", "--supervised"), env, leave_rest=False),
        Child(WORKER, python("gotask.cli.worker", "--supervised"), env),
    ]

    def ready() -> bool:
        if not (answers(http.http_addr, http.http_port) and works(children[1], http, node)):
            return False
        banner(http, node, promise, sample)
        return True

    patience = max(http.shutdown_timeout, node.shutdown_timeout) + 5.0
    return Supervisor(children, patience, ready=ready, until=WORKER if node.burst else "").run()


def inherited(given: dict[str, str]) -> dict[str, str]:
    """Flags for the children as environment, where `ps` does not show their secrets."""
    every = settings_of(ServerSettings) | settings_of(WorkerSettings)
    return {every[name].variable if name in every else f"GOTASK_{name.upper()}": text for name, text in given.items()}


def answers(address: str, port: int) -> bool:
    """Whether what listens there says that it is ready."""
    import http.client  # as in health: it is slow to load

    connection = http.client.HTTPConnection(local(address), port, timeout=READY_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def local(address: str) -> str:
    """Where a program that listens at `address` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def works(child: Child, http: ServerSettings, node: WorkerSettings) -> bool:
    """Whether the node is ready: by its own word or, if nobody can ask it, because the storage knows it."""
    if node.health_port:
        return answers(node.health_addr, node.health_port)
    try:
        with closing(backends.open(http.url)) as backend:
            return any(child.process and one.pid == child.process.pid for one in backend.all(Worker))
    except GotaskError:
        return False


def banner(http: ServerSettings, node: WorkerSettings, promise: str, sample: Sample | None) -> None:
    url = f"http://{'localhost' if http.http_addr == '127.0.0.1' else local(http.http_addr)}:{http.http_port}"
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
    output.say("\nTry:")
    if sample is not None:
        key = " -H 'Authorization: Bearer <key>'" if http.api_keys else ""
        job = {"type": sample.type, "queue": sample.queue, "payload": sample.payload}
        body = shlex.quote(
            msgspec.json.encode({name: value for name, value in job.items() if value not in ("default", {})}).decode()
        )
        output.say(f"  curl -X POST {url}/api/v1/jobs{key} -H 'Content-Type: application/json' -d {body}")
    output.say("  gotask job list\n")
    with exits.writing():
        sys.stdout.flush()
