"""`gotask worker`: the node itself, which is gotask-worker under another name, and `gotask worker list`."""

import argparse
from typing import Any

from gotask.cli import exits, flags, output, store, worker
from gotask.settings import WorkerSettings


def add(sub: Any) -> None:
    about = "Run a node, like gotask-worker; `gotask worker list` shows the nodes there are."
    parser = flags.command(
        sub, "worker", worker.run, about, worker.EXAMPLE.replace("gotask-worker", "gotask worker"), WorkerSettings
    )
    noun = parser.add_subparsers(title="commands", metavar="COMMAND")
    listing = flags.command(noun, "list", list_, "List the nodes.", "gotask worker list")
    flags.reading(listing)


def list_(args: argparse.Namespace) -> int:
    with store.connected(args) as service:
        answer = service.list_workers()
    if args.json:
        output.as_json(answer)
        return exits.OK
    columns = ("name", "host", "pid", "slots", "processes", "queues", "types", "started_at", "seen_at")
    rows = ([getattr(worker, column) for column in columns] for worker in answer.workers)
    shown = ["tasks" if column == "types" else column.removesuffix("_at") for column in columns]
    spare = ("started", "pid", "processes", "host")
    output.table(shown, rows, empty="No node has reported yet.", spare=spare, elastic="tasks")
    return exits.OK
