"""A server with a node at work; and one with a proxy before it, through which alone the node reaches it."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gotask import backends
from gotask.backends import Backend
from tests.chaos.producer import Producer, fresh
from tests.chaos.witness import Run, agreed, judge, runs
from tests.crash.harness import Node, drained, node
from tests.servers.chaosproxy import ChaosProxy
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

IMPATIENT: Final = "?timeout=1"  #: for producers, which are to try often
SOON: Final = "?timeout=2"  #: for a node, whose calls are to be given up within a fault


@contextmanager
def at_work(server: Redis | Postgres, folder: Path, numbers: dict[str, int], *flags: str) -> Iterator[tuple[Node, Backend]]:
    """A node that has loaded its app and works, and the store. `numbers` gets what was accepted for that."""
    many = ("-c", "4", "--processes", "2")
    with closing(backends.open(server.url)) as store, node(server.url, folder, *many, *flags) as running:
        fresh(store, numbers, 30.0)
        yield running, store


@dataclass
class Site:
    """`store` reaches the server itself, `url` goes through the proxy. `numbers` is all that was ever accepted here."""

    server: Redis | Postgres
    proxy: ChaosProxy
    store: Backend
    node: Node
    url: str
    numbers: dict[str, int] = field(default_factory=dict)

    def load(self, name: str, **pace: float) -> Producer:
        return Producer(self.url + IMPATIENT, name=name, **pace)  # type: ignore[arg-type]

    def heal(self) -> float:
        """Mend the line, and see a fresh job end; seconds from the one to the other."""
        self.proxy.heal()
        begun = time.monotonic()
        fresh(self.store, self.numbers)
        return time.monotonic() - begun

    def judged(self, *loads: Producer, repeated: int = 0) -> list[Run]:
        """Let all end, and judge all that ever ran here."""
        for load in loads:
            self.numbers.update(load.numbers)
        drained(self.store, 60.0)
        seen = runs(self.node.witness)
        judge(self.store, self.numbers, seen, repeated)
        agreed(self.store)
        return seen


@contextmanager
def site(folder: Path, *flags: str, kind: str = "redis") -> Iterator[Site]:
    made_by = {
        "redis": lambda: Redis(folder / "redis", appendonly=True, appendfsync="everysec"),
        "postgres": lambda: Postgres(folder / "postgres"),
    }
    with made_by[kind]() as server, ChaosProxy(server.address) as proxy:
        url = proxy.before(server.url)
        with closing(backends.open(server.url)) as store, node(url + SOON, folder, *flags) as running:
            made = Site(server, proxy, store, running, url)
            fresh(store, made.numbers, 30.0)  # the node has loaded its app and works
            yield made
