"""`gotask migrate`: bring a storage's tables up to date, see how far they are, or print the SQL for somebody who may."""

import argparse
from typing import Any, Final

from gotask import backends, log
from gotask.cli import exits, flags, output
from gotask.errors import NotConfigured
from gotask.settings import ClientSettings

EXAMPLE: Final = """
gotask migrate -storage=sqlite:////var/lib/gotask/jobs.db
gotask migrate up -storage=postgres://owner@host/jobs
gotask migrate status -storage=postgres://host/jobs
gotask migrate sql -storage=postgres://host/jobs | psql postgres://owner@host/jobs
"""
WHAT: Final = ("up", "status", "sql")


def add(sub: Any) -> None:
    about = "Bring the storage's schema up to date; servers and workers make one that is not there when they start."
    parser = flags.command(sub, "migrate", run, about, EXAMPLE)
    parser.add_argument(
        "what", nargs="?", choices=WHAT, default="up", help="run the steps (default), list them, or print their SQL"
    )
    parser.add_argument("--post", action="store_true", help="also the steps for when no older version runs any more")


def run(args: argparse.Namespace) -> int:
    url = flags.settings(ClientSettings, args).url
    if not backends.is_kept_in(url, "postgres"):
        return embedded(url, args.what)
    backends.open(url).close()  # tells of a missing library, and of what is wrong in the URL
    from gotask.backends.postgres import upkeep

    if args.what == "status":
        rows = [(name, "applied" if done else "to do") for name, done in upkeep.status(url).items()]
        output.table(["step", "state"], rows)
    elif args.what == "sql":
        print(upkeep.script(url, args.post), end="")
    else:
        done = upkeep.up(url, args.post)
        what = f"was brought up to date: {', '.join(done)}" if done else "is up to date"
        output.say(f"The schema of {log.scrub(url)} {what}.")
    return exits.OK


def embedded(url: str, what: str) -> int:
    """Of the storages that keep their own tables up to date."""
    if what == "sql":
        raise NotConfigured(f"The storage {log.scrub(url)} has no steps to print: it keeps itself up to date.")
    backend = backends.open(url)
    try:
        output.say(f"The schema of {log.scrub(url)} is up to date: {backend.promise}")
    finally:
        backend.close()
    return exits.OK
