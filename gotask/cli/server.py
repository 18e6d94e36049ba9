"""gotask-server: the REST API, health checks and metrics of one storage."""

import argparse
import errno
import logging
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from gotask import __version__, clock, log
from gotask.cli import exits, flags, store
from gotask.errors import InvalidInput, NotConfigured
from gotask.settings import ServerSettings

ABOUT: Final = "Serve the REST API of a storage; any number of servers and workers may share one."
EXAMPLE: Final = """
gotask-server
gotask-server -storage=sqlite:////var/lib/gotask/jobs.db -http-port=8000
GOTASK_API_KEYS=secret gotask-server -http-addr=0.0.0.0
"""
#: seconds to wait for a port: a server that was just replaced may still be closing it
PATIENCE_S: Final = 3.0
PROMISE: Final = "Once enqueue has answered"  #: how each storage's promise begins


def run(args: argparse.Namespace) -> int:
    settings = flags.settings(ServerSettings, args)
    log.configure(settings.log_level, settings.log_format)
    free_port(settings.http_addr, settings.http_port, "-http-port")
    free_port(settings.http_addr, settings.metrics_port, "-metrics-port")
    if getattr(args, "supervised", False):  # then the promise is shown by who started this, for the whole tree
        logging.getLogger("gotask.server").addFilter(lambda record: not record.getMessage().startswith(PROMISE))
    else:
        store.awaited(settings.url)
    try:
        from gotask.api import wsgi
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("gotask"):
            raise
        raise NotConfigured(f"The server needs {e.name}, which is not installed: pip install 'gotask[server]'.") from e
    return wsgi.serve(settings)


def free_port(address: str, port: int, flag: str) -> None:
    """Raise InvalidInput if `port` stays taken, or cannot be listened on at all: said here, before anything has started."""
    if not port:
        return  # turned off
    until = clock.monotonic() + PATIENCE_S
    while True:
        try:
            family, kind, proto, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, proto) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                probe.listen()
            return
        except OSError as e:
            if e.errno == errno.EADDRINUSE and clock.monotonic() < until:
                time.sleep(0.1)
                continue
            taken = "is in use by another program" if e.errno == errno.EADDRINUSE else f"cannot be used ({e.strerror})"
            raise InvalidInput(f"Port {port} on {address} {taken}; choose another with {flag}.") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags.Parser(
        prog="gotask-server", description=ABOUT, epilog=f"examples:{EXAMPLE.replace(chr(10), chr(10) + '  ')}"
    )
    parser.add_argument("--version", action="version", version=f"gotask {__version__}")
    flags.supervised(parser)
    flags.settings_flags(parser, ServerSettings)
    return exits.guard(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
