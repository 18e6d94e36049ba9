"""gotask-worker: a node, which leases jobs from a storage and runs them."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Final

from gotask import __version__, log
from gotask.cli import appcheck, exits, flags, server, store
from gotask.errors import NotConfigured
from gotask.settings import DEFAULT, WorkerSettings

ABOUT: Final = "Run jobs: as many at once as -concurrency says, over several processes. Needs Linux."
EXAMPLE: Final = """
gotask-worker -A shop.tasks:app
gotask-worker -A shop.tasks:app -Q mail,reports -c 16 --max-memory 512M
gotask-worker -A shop.tasks:app --burst
"""
ECHO: Final = appcheck.Sample("echo", "default", {"message": "Hello, GoTask!"})  #: of the tasks of a node without an app
POOL: Final = "There is no pool to choose: a `def` task runs in a process or thread, an `async def` task on its event loop."


def run(args: argparse.Namespace) -> int:
    settings = flags.settings(WorkerSettings, args)
    log.configure(settings.log_level, settings.log_format)
    if settings.origin("health_port") != DEFAULT:  # a second node with the default does without, and says so
        server.free_port(settings.health_addr, settings.health_port, "-health-port")
    if not getattr(args, "supervised", False):
        able()
        store.awaited(settings.url)
        load(settings)
    from gotask.node import launch

    code = launch.run(settings)
    return exits.USAGE if code == exits.CONFIG else code


def able() -> None:
    """Raise NotConfigured where no worker can run."""
    if not sys.platform.startswith("linux"):
        raise NotConfigured("A worker needs Linux; producers and the server run anywhere.")
    if importlib.util.find_spec("gotask._core.ring") is None:
        raise NotConfigured("GoTask's extension is not built, and a worker needs it: run `make build`, or install a wheel.")


def load(settings: WorkerSettings) -> appcheck.Sample | None:
    """See that the app can be imported; a job of it to try. Raises NotConfigured."""
    # a console script has its own folder first in sys.path, where `python -m` has the current one
    if "" not in sys.path:
        sys.path.insert(0, "")
    if not settings.app:
        return ECHO
    appcheck.named(settings.app)
    return appcheck.check(settings.app)


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(
        prog="gotask-worker", description=ABOUT, epilog=f"examples:{EXAMPLE.replace(chr(10), chr(10) + '  ')}"
    )
    parser.add_argument("--version", action="version", version=f"gotask {__version__}")
    parser.add_argument("-P", "--pool", metavar="POOL", help=argparse.SUPPRESS)
    flags.supervised(parser)
    flags.settings_flags(parser, WorkerSettings)

    def start() -> int:
        args = parser.parse_args(argv)
        return exits.failed(POOL, exits.USAGE) if args.pool else run(args)

    return exits.guard(start)


if __name__ == "__main__":
    sys.exit(main())
