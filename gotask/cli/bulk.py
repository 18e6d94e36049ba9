"""`gotask job cancel|retry|delete`: for jobs by id, or for all that a filter finds."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gotask.cli import exits, flags, output, store
from gotask.config import did_you_mean
from gotask.errors import Conflict, GotaskError, InvalidInput, NotFound
from gotask.model import Filter

if TYPE_CHECKING:
    from gotask.service import Service

PAGE: Final = 500  #: jobs fetched at once
EXAMPLE_ID: Final = "0198c0de-7a1b-7c3d-8e5f-0123456789ab"
SHOWN: Final = 5  #: refusals that are told one by one


class Deed(NamedTuple):
    """What can be done to many jobs."""

    call: str
    about: str
    done: str
    asks: bool  # for its end cannot be undone


DEEDS: Final = {
    "cancel": Deed("cancel_job", "Cancel jobs; running ones are asked to stop.", "cancelled or asked to stop", False),
    "retry": Deed("retry_job", "Put failed, cancelled or expired jobs back into their queues.", "back in their queues", False),
    "delete": Deed("delete_job", "Delete jobs that are not running.", "deleted", True),
}


def add(noun: Any) -> None:
    for name, deed in DEEDS.items():
        example = f"gotask job {name} {EXAMPLE_ID}\ngotask job {name} --filter status=failed --filter queue=mail --dry-run"
        parser = flags.command(noun, name, run, deed.about, example)
        parser.set_defaults(deed=name)
        parser.add_argument("ids", metavar="ID", nargs="*")
        parser.add_argument(
            "--filter", metavar="NAME=VALUE", action="append", default=[], help="all jobs with this; may be given again"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say which jobs it would be")
        parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
        flags.reading(parser)


def run(args: argparse.Namespace) -> int:
    if bool(args.ids) == bool(args.filter):
        raise InvalidInput(f"Name the jobs to {args.deed} by their ids, or all that a --filter finds, and not both.")
    deed = DEEDS[args.deed]
    wanted = parse_filter(args.filter) if args.filter else None
    with store.connected(args) as service:
        ids = list(found(service, wanted)) if wanted else list(dict.fromkeys(args.ids))
        if args.dry_run:
            output.as_json({"ids": ids}) if args.json else output.table(["id"], [[id] for id in ids], empty="No job fits.")
            return exits.OK
        if (deed.asks or wanted) and ids and not output.confirmed(f"{args.deed.capitalize()} {len(ids)} jobs?", args.yes):
            return exits.failed(
                f"Nothing was done: add --yes to {args.deed} {len(ids)} jobs without being asked.", exits.FAILED
            )
        refused = do(service, deed, ids)
    done = len(ids) - len(refused)
    if args.json:
        output.as_json({"done": done, "refused": [{"id": id, "error": str(error)} for id, error in refused.items()]})
    else:
        output.say(f"{done} {'job is' if done == 1 else 'jobs are'} {deed.done}.")
        for error in list(refused.values())[:SHOWN]:
            exits.say(error)
        if len(refused) > SHOWN:
            exits.say(f"{len(refused) - SHOWN} more were refused; --json lists them all.")
    # between the listing and the deed a job may have moved on by itself, which is no failure of a bulk command
    hard = [error for error in refused.values() if not (wanted and isinstance(error, Conflict | NotFound))]
    return exits.FAILED if hard else exits.OK


def parse_filter(texts: list[str]) -> Filter:
    values = flags.pairs(texts)
    known = [name for name in Filter.__struct_fields__ if name not in ("limit", "offset", "cursor")]
    for name in values:
        if name not in known:
            raise InvalidInput(f"--filter knows no {name!r}{did_you_mean(name, known)}")
    return flags.struct(Filter, {**values, "status": flags.state(values.get("status")), "limit": PAGE})


def found(service: "Service", wanted: Filter) -> Iterator[str]:
    """The ids of all jobs that fit. Read to the end before anything is done to them, since that would move the pages."""
    while True:
        page = service.list_jobs(wanted)
        yield from (job.id for job in page.jobs)
        if page.next_cursor is None:
            return
        wanted.cursor = page.next_cursor


def do(service: "Service", deed: Deed, ids: list[str]) -> dict[str, GotaskError]:
    refused: dict[str, GotaskError] = {}
    with output.progress() as bar:
        task = bar.add_task("working", total=len(ids))
        for id in ids:
            try:
                getattr(service, deed.call)(id)
            except (Conflict, NotFound) as e:
                refused[id] = e
            bar.advance(task)
    return refused
