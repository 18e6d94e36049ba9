"""Lines that are slow, cut, deaf or dumb, between a node at work and its server: nothing is lost, nothing runs twice."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from statistics import median

import pytest

from tests.chaos.producer import fresh
from tests.chaos.scale import so_long, so_many
from tests.chaos.site import Site, site
from tests.servers.chaosproxy import ChaosProxy, Way

pytestmark = pytest.mark.timeout(600)
LONG_S = so_long(3.5, 12.0)  #: seconds that a fault lasts: longer than a call's deadline
AGAIN_S = 0.5  #: seconds between two strikes of a fault that strikes again and again
HEARD_S = 0.4  #: seconds in which a node that hears the bell has run a job; a deaf one looks every two seconds
NODE = "at-the-line"
IDLE_S = 1.2  #: seconds after a job until a node has wholly gone to sleep


@pytest.fixture(scope="module", params=["redis", "postgres"])
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("line"), "-c", "4", "--processes", "2", "--worker-id", NODE, kind=request.param) as made:
        yield made


def strikes(act: Callable[[], object], seconds: float = LONG_S) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        act()
        time.sleep(AGAIN_S)


def resets(proxy: ChaosProxy) -> None:
    strikes(proxy.reset)


def half_closes(proxy: ChaosProxy) -> None:
    ways = [Way.REPLY, Way.REQUEST] * 1000
    strikes(lambda: proxy.half_close(ways.pop()))


def slow(proxy: ChaosProxy) -> None:
    proxy.delay(0.15, jitter=0.1)
    time.sleep(LONG_S)


def too_slow(proxy: ChaosProxy) -> None:
    """Each call is carried out, and none is heard of in time."""
    proxy.delay(3.0)
    time.sleep(LONG_S)


def held(proxy: ChaosProxy) -> None:
    proxy.black_hole()
    time.sleep(LONG_S)


def forgotten(proxy: ChaosProxy) -> None:
    proxy.black_hole(deliver=False)
    time.sleep(LONG_S)


def dumb(proxy: ChaosProxy) -> None:
    """What is asked arrives, and what is answered does not."""
    proxy.black_hole(Way.REPLY, deliver=False)
    time.sleep(LONG_S)


def refused(proxy: ChaosProxy) -> None:
    proxy.down()
    time.sleep(LONG_S)


def cut_midway(proxy: ChaosProxy) -> None:
    dice = random.Random(1)
    strikes(lambda: proxy.cut_after(dice.randrange(2000), dice.choice(list(Way))))


#: what stands in a request that enqueues, that leases, that settles: in the body of a job, in a script's verb, and where
#: statements are prepared, in what they are given
SWALLOWED = (b'"ms":', NODE.encode(), b"swallowed-")


def swallowed(proxy: ChaosProxy) -> None:
    """The server acts, and whoever asked does not hear of it."""

    def swallow() -> None:
        for some in SWALLOWED:
            lost = proxy.swallow_reply(containing=some)
            with suppress(ConnectionError, CancelledError):
                lost.result(10.0)

    strikes(swallow)


LASTING = {too_slow, held, forgotten, dumb, refused, swallowed}
FAULTS = [resets, half_closes, slow, too_slow, held, forgotten, dumb, refused, cut_midway, swallowed]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_under_load_a_line_fails_and_heals(line: Site, fault: Callable[[ChaosProxy], None]) -> None:
    # Given a producer and a node at work, both of which reach the server through one line
    with line.load(fault.__name__) as load:
        fresh(line.store, line.numbers)
        opened = line.proxy.counts.accepted
        # When the line fails, and after a while heals
        fault(line.proxy)
        seconds = line.heal()
        print(f"{fault.__name__}: consuming again {seconds:.2f} s after it healed; {load.failures} calls had failed")
    # Then jobs run again within five seconds, all that was accepted has ended once, and none has run twice: while leases
    # hold, a node that cannot reach its server keeps what it has, and gives back unstarted what it never heard of
    line.judged(load)
    # And the fault was one: calls were slow, or connections had to be made anew; those that outlast a deadline fail calls
    assert load.slowest >= 0.1 if fault is slow else line.proxy.counts.accepted > opened
    assert load.failures or fault not in LASTING


#: how the line of a node dies that has nothing to do: it learns of it late, for it asks little
DEATHS = {
    "reset": lambda proxy: proxy.reset(),
    "ended": lambda proxy: proxy.half_close(),
    "forgotten": lambda proxy: proxy.black_hole(deliver=False),
    "refused": lambda proxy: proxy.down(),
}


@pytest.mark.parametrize("death", [*DEATHS] * so_many(1, 10))
def test_an_idle_node_hears_the_bell_again(line: Site, death: str) -> None:
    # Given a node that has nothing to do
    line.judged()
    # When all its connections die at once, and new ones are possible from then on
    DEATHS[death](line.proxy)
    seconds = line.heal()
    # Then it runs jobs within five seconds, and afterwards at once: it listens to the bell again, and does not only look
    pickups = []
    for _ in range(3):
        time.sleep(IDLE_S)
        pickups.append(fresh(line.store, line.numbers))
    print(f"{death}: {seconds:.2f} s, then {', '.join(f'{pickup:.3f}' for pickup in pickups)}")
    assert median(pickups) < HEARD_S
    line.judged()
