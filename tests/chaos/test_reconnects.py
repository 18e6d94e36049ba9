"""A thousand short faults one after another, each of another kind and length: after each of them workers work again."""

import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import quantiles

import pytest

from gotask import backends
from tests.chaos.scale import HEAL_S, so_many
from tests.chaos.site import site
from tests.servers.chaosproxy import ChaosProxy, Way
from tests.servers.fixtures import StartRedis

pytestmark = pytest.mark.timeout(10_800)
CYCLES = so_many(15, 1000)
SHORT_S = (0.02, 1.0)  #: seconds that a fault lasts

KINDS: dict[str, Callable[[ChaosProxy], object]] = {
    "reset": lambda proxy: proxy.reset(),
    "stall": lambda proxy: proxy.black_hole(),
    "silence": lambda proxy: proxy.black_hole(deliver=False),
    "no answers": lambda proxy: proxy.black_hole(Way.REPLY, deliver=False),
    "refuse": lambda proxy: proxy.down(),
    "half-close": lambda proxy: proxy.half_close(),
    "lag": lambda proxy: proxy.delay(0.4, jitter=0.3),
}


def test_a_thousand_reconnects(tmp_path: Path) -> None:
    # Given a producer and a node at work through one line
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print(f"SEED={seed}")
    dice = random.Random(seed)
    took: list[float] = []
    with site(tmp_path, "-c", "4", "--processes", "2") as line, line.load("load", per_s=40.0) as load:
        for cycle in range(CYCLES):
            # When it fails for a short while
            kind, seconds = dice.choice(list(KINDS)), dice.uniform(*SHORT_S)
            KINDS[kind](line.proxy)
            time.sleep(seconds)
            # Then a job that is enqueued as soon as it is whole again ends within five seconds, each time
            try:
                took.append(line.heal())
            except AssertionError as error:
                raise AssertionError(
                    f"cycle {cycle}, {kind} for {seconds:.2f} s: {error}; SEED={seed}\n{line.proxy.open} connections, "
                    f"{line.proxy.counts}\n{line.node.log.read_text()[-2000:]}"
                ) from error
        load.stop()
        # And nothing was lost or run twice
        line.judged(load)
        assert load.failures
    cuts = quantiles(took, n=100, method="inclusive")
    print(f"{CYCLES} cycles: p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s, most {max(took):.2f} s; {load.failures} calls failed")
    assert max(took) <= HEAL_S


def test_a_store_connects_as_often_as_it_must(start_redis: StartRedis) -> None:
    # Given a store behind a line that is cut again and again
    server = start_redis()
    with ChaosProxy(server.address) as proxy, closing(backends.open(proxy.before(server.url))) as store:
        for _ in range(300):
            # When all its connections are reset
            store.counts()
            proxy.reset()
        # Then it always makes new ones
        store.counts()
        assert proxy.counts.accepted > 300
