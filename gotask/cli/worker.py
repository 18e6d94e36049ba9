"""gotask-worker: a node, which leases jobs from a storage and runs them."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Final

from gotask import __version__, log
from gotask.cli import exits, flags, server, store
from gotask.errors import InvalidInput, NotConfigured
from gotask.settings import DEFAULT, WorkerSettings

ABOUT: Final = "Run jobs: as many at once as -concurrency says, over several processes. Needs Linux."
EXAMPLE: Final = """
gotask-worker -A shop.tasks:app
gotask-worker -A shop.tasks:app -Q mail,reports -c 16 --max-memory 512M
gotask-worker -A shop.tasks:app --burst
"""
POOL: Final = "There is no pool to choose: a `def` task runs in a process or thread, an `async def` task on its event loop."


def run(args: argparse.Namespace) -> int:
    settings = flags.settings(WorkerSettings, args)
    log.configure(settings.log_level, settings.log_format)
    if settings.origin("health_port") != DEFAULT:  # a second node with the default does without, and says so
        server.free_port(settings.health_addr, settings.health_port, "-health-port")
    if settings.app:
        app_exists(settings.app)
    if not sys.platform.startswith("linux"):
        raise NotConfigured("A worker needs Linux; producers and the server run anywhere.")
    if importlib.util.find_spec("gotask._core.ring") is None:
        raise NotConfigured("GoTask's extension is not built, and a worker needs it: run `make build`, or install a wheel.")
    store.promise(settings.url)
    from gotask.node import launch

    return launch.run(settings)


def app_exists(name: str) -> None:
    """Raise InvalidInput unless `name` is module:variable and its outermost package is there. Workers import it, not this."""
    module, colon, variable = name.partition(":")
    if not (colon and module and variable.isidentifier()):
        raise InvalidInput(f"-app is {name!r}; it takes module:variable, such as shop.tasks:app.")
    # a console script has its own folder first in sys.path, where `python -m` has the current one
    if "" not in sys.path:
        sys.path.insert(0, "")
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise InvalidInput(f"There is no module {package!r} for -app {name}: run gotask-worker in the folder that holds it.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(
        prog="gotask-worker", description=ABOUT, epilog=f"examples:{EXAMPLE.replace(chr(10), chr(10) + '  ')}"
    )
    parser.add_argument("--version", action="version", version=f"gotask {__version__}")
    parser.add_argument("-P", "--pool", metavar="POOL", help=argparse.SUPPRESS)
    flags.settings_flags(parser, WorkerSettings)

    def start() -> int:
        args = parser.parse_args(argv)
        return exits.failed(POOL, exits.USAGE) if args.pool else run(args)

    return exits.guard(start)


if __name__ == "__main__":
    sys.exit(main())
