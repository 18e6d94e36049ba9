"""The storage in shared memory: the SQLite one on the machine's tmpfs, shared by all processes of a user, gone at reboot."""

from collections.abc import Callable

from gotask import clock as clocks
from gotask.backends.home import memory_home
from gotask.backends.sqlite import Sqlite


def open(url: str, clock: Callable[[], float] = clocks.now) -> Sqlite:
    """The storage that a `memory` URL names: `memory` or `memory://name`."""
    return Sqlite(memory_home(url), clock)
