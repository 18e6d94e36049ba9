"""The storage in shared memory: the SQLite one on the machine's tmpfs, shared by all processes of a user, gone at reboot."""

from collections.abc import Callable

from gotask import clock as clocks
from gotask.backends.sqlite import Sqlite
from gotask.backends.sqlite.home import memory_home


def open(url: str, clock: Callable[[], float] = clocks.now) -> Sqlite:
    """The storage that a `memory` URL names: `memory` or `memory://name`."""
    return Sqlite(memory_home(url), clock)
