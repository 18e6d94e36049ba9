"""A server that stands still: no call of the store outlasts its deadline, and everybody says so and gets over it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gotask import backends
from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import Beat, Filter, NewJob, Queue, Settlement
from gotask.states import Event
from tests.api.served import Server
from tests.chaos.producer import Producer, fresh
from tests.chaos.scale import HEAL_S, so_many
from tests.chaos.witness import judge, runs
from tests.crash.harness import drained, node, until
from tests.servers.chaosproxy import ChaosProxy
from tests.servers.fixtures import StartPostgres, StartRedis
from tests.servers.postgres import Postgres
from tests.servers.processes import free_ports
from tests.servers.redis import Redis

pytestmark = pytest.mark.timeout(1800)
TIMEOUT_S = 1.0
SLACK_S = 1.0
CONNECT_S = 2.0  #: the least that libpq waits for a new connection
SEEN_S = 15.0  #: seconds until a probe has noticed: a call's deadline, and the time for which it believes an older answer

VERBS: dict[str, Callable[[Backend], Any]] = {
    "enqueue_many": lambda store: store.enqueue_many([NewJob(type="work")]),
    "lease": lambda store: store.lease({"none": 1}, "node", 30.0),
    "settle_many": lambda store: store.settle_many([Settlement("none", 1, Event.ACK)]),
    "extend_many": lambda store: store.extend_many([Beat("none", 1)], 30.0),
    "tick": lambda store: store.tick(),
    "watch": lambda store: store.watch(["queue:none", "queue:other", "node:none"]).close(),
    "watch of a job": lambda store: store.watch(["job:none"]).close(),
    "move_many": lambda store: store.move_many(["none"], Event.CANCEL),
    "drop_many": lambda store: store.drop_many(["none"]),
    "get_many": lambda store: store.get_many(["none"]),
    "find": lambda store: store.find(Filter()),
    "counts": lambda store: store.counts(),
    "put": lambda store: store.put(Queue(name="other")),
    "get": lambda store: store.get(Queue, "none"),
    "all": lambda store: store.all(Queue),
    "drop": lambda store: store.drop(Queue, "none"),
    "promise": lambda store: store.promise,
}


#: verbs of PostgreSQL that need no answer: a store knows its server, and a watch that cannot listen looks by itself
SILENT = {"old": {"promise", "watch"}, "new": {"watch", "watch of a job"}}


@contextmanager
def frozen(server: Redis | Postgres, _: ChaosProxy) -> Iterator[None]:
    server.suspend()
    yield
    server.resume()


@contextmanager
def silent(_: Redis | Postgres, proxy: ChaosProxy) -> Iterator[None]:
    proxy.black_hole(deliver=False)
    yield
    proxy.heal()


@pytest.mark.parametrize("age", ["old", "new"])
@pytest.mark.parametrize("fault", [frozen, silent], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_each_call_is_back_by_its_deadline(
    start_redis: StartRedis, start_postgres: StartPostgres, kind: str, fault: Any, age: str
) -> None:
    # Given a store for each verb: one that was used before, or one that has still to make its connections
    server = {"redis": start_redis, "postgres": start_postgres}[kind]()
    with ChaosProxy(server.address) as proxy:
        url = f"{proxy.before(server.url)}?timeout={TIMEOUT_S:g}"
        stores = {name: backends.open(url) for name in VERBS}
        if age == "old":
            for name, call in VERBS.items():
                call(stores[name])
        # When all verbs are called while nothing is answered
        with fault(server, proxy):
            took, down = called_at_once(stores)
        # Then each of them is back in time, and says that it was not answered
        connecting = CONNECT_S if kind == "postgres" and age == "new" else TIMEOUT_S
        assert not late(took, connecting + SLACK_S)
        assert down == set(VERBS) - (SILENT[age] if kind == "postgres" else set())
        # And all stores work again
        for name, call in VERBS.items():
            until(f"{name} works again", lambda name=name, call=call: works(call, stores[name]), HEAL_S)
            stores[name].close()


def called_at_once(stores: dict[str, Backend]) -> tuple[dict[str, float], set[str]]:
    """Call each verb in a thread of its own: the seconds they took, and which of them raised BackendDown. None may hang."""
    took: dict[str, float] = {}
    down: set[str] = set()

    def ask(name: str) -> None:
        begun = time.monotonic()
        try:
            VERBS[name](stores[name])
        except BackendDown:
            down.add(name)
        took[name] = time.monotonic() - begun

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in VERBS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20 * TIMEOUT_S)
    stuck = set(VERBS) - set(took)
    assert not stuck, f"still waiting: {sorted(stuck)}"
    return took, down


def late(took: dict[str, float], most: float) -> dict[str, float]:
    return {name: round(seconds, 1) for name, seconds in took.items() if seconds > most}


def test_a_line_that_crawls_costs_a_deadline_for_each_answer_at_most(start_redis: StartRedis) -> None:
    # Given stores that were used before, and a line on which each answer is almost too late
    server = start_redis()
    with ChaosProxy(server.address) as proxy:
        stores = {name: backends.open(f"{proxy.before(server.url)}?timeout={TIMEOUT_S:g}") for name in VERBS}
        for name, call in VERBS.items():
            call(stores[name])
        proxy.delay(0.45 * TIMEOUT_S)
        # When all verbs are called
        took, down = called_at_once(stores)
        # Then a call needs one answer, and a new connection with its subscription a few more
        assert not late({name: seconds for name, seconds in took.items() if "watch" not in name}, TIMEOUT_S + SLACK_S)
        assert not late(took, 4 * TIMEOUT_S + SLACK_S)
        assert not down
        for store in stores.values():
            store.close()


def works(call: Callable[[Backend], Any], store: Backend) -> bool:
    try:
        call(store)
    except BackendDown:
        return False
    return True


def test_nodes_and_servers_turn_red_and_green_again(start_redis: StartRedis, tmp_path: Path) -> None:
    # Given a node, an HTTP server and a producer on one Redis
    redis = start_redis(appendonly=True, appendfsync="everysec")
    numbers: dict[str, int] = {}
    port = free_ports(1)[0]
    flags = ("-c", "2", "--processes", "1", "--lease", "10", "--health-port", f"{port}")
    took = []
    with (
        closing(backends.open(redis.url)) as store,
        node(redis.url, tmp_path, *flags) as running,
        served(tmp_path, redis.url) as server,
        Producer(f"{redis.url}?timeout=1", per_s=40.0) as load,
    ):
        readyz = f"http://127.0.0.1:{port}/readyz"
        until("the node is ready", lambda: status(readyz) == 200, 30.0)
        for _ in range(so_many(1, 50)):
            # When Redis stands still
            redis.suspend()
            # Then an enqueue over HTTP is told to come again, and both probes turn red
            answer = server.post("/api/v1/jobs", {"type": "work", "id": "refused", "payload": {"n": 1, "ms": 0}})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), answer.text
            until("the server is not ready", lambda: status(f"{server.url}/ready") == 503, SEEN_S)
            until("the node is not ready", lambda: status(readyz) == 503, SEEN_S)
            assert status(f"{server.url}/health") == 200
            assert status(readyz.replace("readyz", "livez")) == 200
            # And when it goes on, workers do within five seconds, and both are green: the server once it has enqueued a job
            redis.resume()
            took.append(fresh(store, numbers))
            until("an enqueue over HTTP is accepted", lambda: posted(server, numbers), HEAL_S)
            until("the server is ready", lambda: status(f"{server.url}/ready") == 200, HEAL_S)
            until("the node is ready again", lambda: status(readyz) == 200, HEAL_S)
        load.stop()
        print(f"consuming again after {', '.join(f'{seconds:.2f}' for seconds in took)} s")
        # And nothing was lost or run twice; what the server had refused may have been made all the same, and ran then
        drained(store, 60.0)
        sent = numbers | load.numbers
        judge(store, sent, [run for run in runs(running.witness) if run.job in sent])
        assert load.failures


def posted(server: Server, numbers: dict[str, int]) -> bool:
    """Whether a job could be enqueued over HTTP; if so it is in `numbers`."""
    n = len(numbers)
    answer = server.post("/api/v1/jobs", {"type": "work", "id": f"posted-{n}", "payload": {"n": n, "ms": 0}})
    assert answer.status_code in (200, 201, 503), answer.text
    if answer.status_code != 503:
        numbers[f"posted-{n}"] = n
    return answer.status_code != 503


def status(url: str) -> int:
    return httpx.get(url, timeout=10.0).status_code


@contextmanager
def served(folder: Path, storage: str, *flags: str) -> Iterator[Server]:
    server = Server(folder, storage, *flags).ready()
    try:
        yield server
    finally:
        server.stop()
    assert "Traceback" not in server.output, server.output
