"""`gotask queue`: list, make, set, pause, purge and delete queues."""

import argparse
from typing import Any, Final

import msgspec

from gotask.calls import QueueChange
from gotask.cli import exits, flags, output, served, store
from gotask.model import Queue

SETTINGS: Final = {
    "max_workers": "jobs running at once, over all nodes; 0 is no limit",
    "rate_limit": "starts per second, over all nodes; 0 is no limit",
    "priority": "0 to 9: served strictly before queues of a lower one",
    "weight": "share among queues of one priority",
    "max_retries": "attempts after the first",
    "retry_strategy": "fixed, linear or exponential",
    "retry_delay": "seconds before the first retry",
    "max_retry_delay": "longest delay, in seconds",
    "timeout": "seconds one attempt may run",
    "dead_letter_queue": "where jobs go that failed for good",
}
COUNTS: Final = ("scheduled", "pending", "running", "retrying", "success", "failed", "cancelled", "expired")


def add(sub: Any) -> None:
    noun = flags.nouns(
        flags.command(sub, "queue", None, "Look at queues, set, pause, purge and delete them.", "gotask queue list")
    )
    parser = flags.command(noun, "list", list_, "List queues with their settings.", "gotask queue list --json")
    flags.reading(parser)
    for name, run, about in (
        ("show", show, "Show a queue's settings."),
        ("stats", stats, "Count a queue's jobs by state."),
    ):
        parser = flags.command(noun, name, run, about, f"gotask queue {name} mail")
        parser.add_argument("name", metavar="QUEUE")
        flags.reading(parser)
    for name, run, about in (
        ("create", create, "Make a queue with settings of its own."),
        ("set", change, "Change a queue's settings; what is not named stays."),
    ):
        parser = flags.command(noun, name, run, about, f"gotask queue {name} mail --max-workers 20 --rate-limit 5")
        parser.add_argument("name", metavar="QUEUE")
        flags.struct_flags(parser, Queue, SETTINGS)
        flags.reading(parser)
    for name, about, asks in (
        ("pause", "Start no more of a queue's jobs; those that run go on.", False),
        ("resume", "Start a paused queue's jobs again.", False),
        ("purge", "Delete all jobs of a queue that wait to run.", True),
        ("delete", "Delete a queue's settings, once no unfinished job is in it.", True),
    ):
        parser = flags.command(noun, name, act, about, f"gotask queue {name} mail")
        parser.set_defaults(verb=name, asks=asks)
        parser.add_argument("name", metavar="QUEUE")
        if asks:
            parser.add_argument("--yes", "-y", action="store_true", help="do not ask")


def list_(args: argparse.Namespace) -> int:
    with store.connected(args) as service:
        answer = service.list_queues()
        nodes = None if args.json else served.nodes(service)
    if args.json:
        output.as_json(answer)
        return exits.OK
    columns = ("name", "paused", "priority", "weight", "max_workers", "rate_limit", "dead_letter_queue")
    rows = [[getattr(queue, column) for column in columns] for queue in answer.queues]
    if nodes is None:
        output.table(columns, rows)
        return exits.OK
    for row, queue in zip(rows, answer.queues, strict=True):
        row.insert(1, sum(queue.name in node.queues for node in nodes))
    output.table(["name", "nodes", *columns[1:]], rows, spare=("dead_letter_queue", "rate_limit", "max_workers", "weight"))
    for queue in answer.queues:
        if not any(queue.name in node.queues for node in nodes):
            output.say(f"No worker serves queue {queue.name!r}.")
    return exits.OK


def show(args: argparse.Namespace) -> int:
    with store.connected(args) as service:
        return print_queue(service.get_queue(args.name), args.json)


def stats(args: argparse.Namespace) -> int:
    with store.connected(args) as service:
        answer = service.queue_stats(args.name)
    if args.json:
        output.as_json(answer)
    else:
        counts = [getattr(answer, f"{name}_count") for name in COUNTS]
        output.table(["queue", *COUNTS, "paused"], [[answer.queue_name, *counts, answer.paused]])
    return exits.OK


def create(args: argparse.Namespace) -> int:
    queue = flags.struct(Queue, {"name": args.name} | {name: getattr(args, name) for name in SETTINGS})
    with store.connected(args) as service:
        return print_queue(service.create_queue(queue), args.json)


def change(args: argparse.Namespace) -> int:
    wanted: Any = flags.struct(QueueChange, {name: getattr(args, name) for name in SETTINGS})
    with store.connected(args) as service:
        return print_queue(service.update_queue(args.name, wanted), args.json)


def act(args: argparse.Namespace) -> int:
    if args.asks and not output.confirmed(f"{args.verb.capitalize()} queue {args.name}?", args.yes):
        return exits.failed(f"Nothing was done: add --yes to {args.verb} without being asked.", exits.FAILED)
    with store.connected(args) as service:
        output.say(getattr(service, f"{args.verb}_queue")(args.name).message)
    return exits.OK


def print_queue(queue: Queue, json: bool) -> int:
    output.as_json(queue) if json else output.sheet(msgspec.structs.asdict(queue).items())
    return exits.OK
