"""`gotask job`: submit, look at, wait for and end jobs."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gotask import clock
from gotask.cli import bulk, exits, flags, output, served, store
from gotask.cli.bulk import EXAMPLE_ID
from gotask.errors import InvalidInput
from gotask.model import Filter, Job, NewJob
from gotask.states import FINISHED, State

if TYPE_CHECKING:
    from gotask.service import Service

SUBMIT: Final = {
    "queue": "queue it goes to [default]",
    "priority": "0 low, 1 normal, 2 high, up to 9 [1]",
    "delay": "seconds until it may start",
    "scheduled_at": "when it may start, such as 2030-01-31T08:00:00Z",
    "expires_at": "when it is given up if it has not started",
    "id": "an id of your own: sent twice, it is one job",
    "unique_key": "no second job with this key while this one is unfinished",
    "max_retries": "attempts after the first [3]",
    "retry_strategy": "fixed, linear or exponential",
    "retry_delay": "seconds before the first retry",
    "timeout": "seconds one attempt may run [300]",
}
LIST: Final = {
    "queue": "only of this queue",
    "status": "only in this state, such as pending, running or failed",
    "type": "only of this type",
    "worker_id": "only those this node has or had",
    "limit": "rows [50]",
    "cursor": "go on where a page before ended",
}
COLUMNS: Final = ("id", "type", "queue", "status", "created_at", "completed_at", "reason")
SPARE: Final = (
    "completed",
    "created",
    "queue",
    "reason",
    "type",
)  #: columns that a narrow terminal does without, in this order
POLL_S: Final = 30.0  #: seconds of one long poll; a proxy cuts longer ones


def add(sub: Any) -> None:
    about = "Submit jobs, look at them, wait for them and end them."
    noun = flags.nouns(flags.command(sub, "job", None, about, 'gotask job submit echo --payload \'{"message": "hi"}\' --wait'))
    add_submit(noun)
    parser = flags.command(noun, "show", show, "Show a job in full.", f"gotask job show {EXAMPLE_ID}")
    parser.add_argument("id", metavar="ID")
    flags.reading(parser)
    parser = flags.command(
        noun, "list", list_, "List jobs, newest first.", "gotask job list --status failed\ngotask job list --queue mail --json"
    )
    flags.struct_flags(parser, Filter, LIST)
    flags.reading(parser)
    about = "Wait for jobs to end; fails if one did not end well."
    parser = flags.command(noun, "wait", wait, about, f"gotask job wait {EXAMPLE_ID} --wait-timeout 60")
    parser.add_argument("ids", metavar="ID", nargs="+")
    patience(parser)
    flags.reading(parser)
    bulk.add(noun)


def add_submit(noun: Any) -> None:
    examples = """gotask job submit echo --payload '{"message": "hi"}'
    gotask job submit report --payload @report.json --queue slow --delay 60
    gotask job submit math --payload '{"operation": "add", "a": 10, "b": 5}' --wait"""
    parser = flags.command(noun, "submit", submit, "Enqueue a job.", examples)
    parser.add_argument("type", metavar="TYPE", help="which task runs it")
    parser.add_argument(
        "--payload", metavar="JSON", default="{}", help="a JSON object; @FILE reads a file, - the standard input [{}]"
    )
    flags.struct_flags(parser, NewJob, SUBMIT)
    parser.add_argument("--wait", action="store_true", help="wait for its end, and show its result")
    patience(parser)
    flags.reading(parser)


def patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait-timeout", metavar="SECONDS", type=float, help="give up waiting then [never]")


def submit(args: argparse.Namespace) -> int:
    values = {name: getattr(args, name) for name in SUBMIT}
    job = flags.struct(NewJob, {**values, "type": args.type, "payload": msgspec.Raw(read(args.payload))})
    with store.connected(args) as service:
        made = service.create_job(job)
        if not args.wait:
            output.as_json(made) if args.json else output.say(made.id)
            return exits.OK
        warn(service, [made])
        ended = until_ended(service, [made.id], args.wait_timeout)[0]
    print_job(ended, args.json)
    return verdict([ended])


def read(text: str) -> bytes:
    """The payload as typed, from a file, or from standard input. Raises InvalidInput if it is not JSON."""
    try:
        raw = sys.stdin.buffer.read() if text == "-" else Path(text[1:]).read_bytes() if text[:1] == "@" else text.encode()
        msgspec.json.decode(raw)
    except OSError as e:
        raise InvalidInput(f"--payload names {text[1:]}, which cannot be read: {e.strerror}.") from None
    except (msgspec.DecodeError, UnicodeError) as e:
        raise InvalidInput(f"--payload is not JSON: {e}.") from None
    return raw.strip()


def show(args: argparse.Namespace) -> int:
    with store.connected(args) as service:
        job = service.get_job(args.id)
        print_job(job, args.json)
        if not args.json and job.status in served.WAITING and (trouble := served.trouble(job, served.nodes(service))):
            output.say(trouble)
    return exits.OK


def list_(args: argparse.Namespace) -> int:
    wanted = flags.struct(Filter, {name: getattr(args, name) for name in LIST} | {"status": flags.state(args.status)})
    with store.connected(args) as service:
        page = service.list_jobs(wanted)
    if args.json:
        output.as_json(page)
        return exits.OK
    rows = ([getattr(job, column) for column in COLUMNS] for job in page.jobs)
    columns = [column.removesuffix("_at") for column in COLUMNS]
    output.table(columns, rows, empty="There are no such jobs.", spare=SPARE, elastic="reason")
    if page.next_cursor:
        output.say(f"There are more: add --cursor {page.next_cursor}")
    return exits.OK


def wait(args: argparse.Namespace) -> int:
    with store.connected(args) as service:
        warn(service, [service.get_job(id) for id in args.ids])
        ended = until_ended(service, args.ids, args.wait_timeout)
    if args.json:
        output.as_json({"jobs": ended})
    else:
        output.table(["id", "status", "error"], ([job.id, job.status, first_line(job.error)] for job in ended))
    return verdict(ended)


def warn(service: "Service", jobs: list[Job]) -> None:
    """Say why a wait may be in vain, each reason once."""
    waiting = [job for job in jobs if job.status in served.WAITING]
    found = served.nodes(service) if waiting else None
    for trouble in dict.fromkeys(served.trouble(job, found) for job in waiting):
        if trouble:
            exits.say(trouble)


def until_ended(service: "Service", ids: list[str], timeout: float | None) -> list[Job]:
    """The jobs, each ended or, once `timeout` seconds have passed, as it then is."""
    end = clock.monotonic() + timeout if timeout is not None else float("inf")
    found: list[Job] = []
    with output.progress() as bar:
        task = bar.add_task("waiting", total=len(ids))
        for id in ids:
            job = service.wait_job(id, max(0.0, min(POLL_S, end - clock.monotonic())))
            while job.status not in FINISHED and (left := end - clock.monotonic()) > 0:
                job = service.wait_job(id, min(POLL_S, left))
            found.append(job)
            bar.advance(task)
    return found


def verdict(jobs: list[Job]) -> int:
    waiting = [job for job in jobs if job.status not in FINISHED]
    if waiting:
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        return exits.failed(f"Job {waiting[0].id}{more} had not ended in time: it is {waiting[0].status}.", exits.TIMEOUT)
    return exits.OK if all(job.status is State.SUCCESS for job in jobs) else exits.FAILED


def print_job(job: Job, json: bool) -> None:
    if json:
        output.as_json(job)
        return
    fields = [(name, getattr(job, name)) for name in job.__struct_fields__ if name not in ("attempts", "cancel_requested")]
    output.sheet([*fields, *(("cancel", "requested") for _ in range(job.cancel_requested))])
    for number, attempt in enumerate(job.attempts or (), 1):
        ended = f"{attempt.outcome} {output.text(attempt.ended_at)}" if attempt.ended_at else attempt.outcome or "under way"
        output.say(f"  attempt {number}: {attempt.worker or '?'}, {ended}  {first_line(attempt.error)}".rstrip())


def first_line(error: str | None) -> str:
    """The line that names an error; a traceback says it last."""
    return error.strip().splitlines()[-1] if error and error.strip() else ""
