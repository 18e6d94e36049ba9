"""gotask: everything at one door. Each noun has a file of its own; this one only joins them."""

import sys
from collections.abc import Sequence
from typing import Final

from gotask import __version__
from gotask.cli import doctor, exits, flags, jobs, migrate, queues, server, settings, up, workers
from gotask.settings import ServerSettings

ABOUT: Final = "A task queue that runs with nothing else installed and loses nothing it accepted."
EPILOG: Final = f"""\
first steps:
  gotask up                                                      a server and a worker, until Ctrl-C
  gotask job submit echo --payload '{{"message": "hi"}}' --wait    a job, and its result
  gotask job list                                                what became of all jobs
  gotask COMMAND --help                                          more, with examples

The commands talk to the storage that -storage, GOTASK_STORAGE or gotask.toml names (sqlite if none does), or to a
server when that is an http:// URL.

{exits.DOC}"""


def build() -> flags.Parser:
    parser = flags.Parser(prog="gotask", description=ABOUT, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"gotask {__version__}")
    sub = flags.nouns(parser)
    up.add(sub)
    about = "Serve the REST API, like gotask-server."
    flags.command(sub, "server", server.run, about, server.EXAMPLE.replace("gotask-server", "gotask server"), ServerSettings)
    for noun in (workers, jobs, queues, settings, migrate, doctor):
        noun.add(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build()

    def start() -> int:
        args = parser.parse_args(argv)
        code: int = args.run(args)
        return code

    return exits.guard(start)


if __name__ == "__main__":
    sys.exit(main())
