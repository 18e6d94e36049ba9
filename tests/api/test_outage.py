"""A store that fails or is slow, behind the application itself: no request hangs, none gets a stack trace."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import falcon.testing
import pytest

from gotask import backends, ticker
from gotask.api import rest, wsgi
from gotask.api.auth import Gate
from gotask.api.gather import Gather
from gotask.api.writes import TOLD_S, UNREADY_S
from gotask.backends import Backend
from gotask.errors import BackendDown
from gotask.model import NewJob, Tick
from gotask.service import Service
from gotask.settings import ServerSettings
from gotask.ticker import AT_MOST_S, NETWORKED_S, Ticker


class Away:
    """A backend in front of a backend, that raises what it is told to."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if self.error is not None:
            raise self.error
        return getattr(self._backend, name)


@pytest.fixture
def away(tmp_path: Any) -> Any:
    backend = backends.open(f"sqlite:///{tmp_path}/jobs.db")
    yield Away(backend)
    backend.close()


def test_a_store_that_is_away_is_503(away: Any) -> None:
    # Given an application whose store does not answer
    web = falcon.testing.TestClient(rest.build(Service(away)))
    away.error = BackendDown("The store at example does not answer.")
    # When anything is asked
    for verb, path, body in (
        ("POST", "/api/v1/jobs", {"type": "echo"}),
        ("POST", "/api/v1/jobs/batch", {"jobs": [{"type": "echo"}]}),
        ("GET", "/api/v1/jobs/x", None),
        ("GET", "/api/v1/jobs/x/wait", None),
        ("GET", "/ready", None),
    ):
        answer = web.simulate_request(verb, path, json=body, host="localhost")
        # Then it is told so, and when to come again
        assert answer.status_code == 503, path
        assert answer.headers["Retry-After"] == "1"
        assert "does not answer" in answer.json["detail"]
    # And the process counts as alive
    assert web.simulate_get("/health", host="localhost").status_code == 200
    # When the store is back, then so is everything
    away.error = None
    assert web.simulate_post("/api/v1/jobs", json={"type": "echo"}, host="localhost").status_code == 201


class Full:
    """A backend in front of a backend, that answers but keeps nothing."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def enqueue_many(self, jobs: Sequence[NewJob]) -> Any:
        if self.full:
            raise BackendDown("The disk of the store is full; make room.", refused=True)
        return self._backend.enqueue_many(jobs)


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs/batch"])
def test_a_full_disk_is_not_ready_and_is_told(away: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that can be asked, and keeps nothing
    now, told = 1000.0, list[str]()
    monkeypatch.setattr("gotask.api.writes.logger.warning", lambda text, *words: told.append(text % words))
    monkeypatch.setattr("gotask.clock.monotonic", lambda: now)
    full = Full(away)
    web = falcon.testing.TestClient(rest.build(Service(full)))  # type: ignore[arg-type]
    job = {"type": "echo"}
    body = job if path == "/api/v1/jobs" else {"jobs": [job]}
    assert web.simulate_get("/readyz", host="localhost").status_code == 200
    # When jobs are refused
    for _ in range(5):
        assert web.simulate_post(path, json=body, host="localhost").status_code == 503
    # Then the server is not ready, and says why; it lives, and one line of its log tells of it
    answer = web.simulate_get("/readyz", host="localhost")
    assert (answer.status_code, "disk of the store is full" in answer.json["detail"]) == (503, True)
    assert web.simulate_get("/livez", host="localhost").status_code == 200
    assert len(told) == 1
    # When it goes on for a while, then another line tells how often
    now += TOLD_S
    assert web.simulate_post(path, json=body, host="localhost").status_code == 503
    assert "5 since" in told[1]
    # When there is room again, then it is ready at once; or after a while, if nobody tried
    full.full = False
    assert web.simulate_get("/readyz", host="localhost").status_code == 503
    assert web.simulate_post(path, json=body, host="localhost").status_code in (200, 201)
    assert web.simulate_get("/readyz", host="localhost").status_code == 200
    full.full = True
    web.simulate_post(path, json=body, host="localhost")
    now += UNREADY_S
    assert web.simulate_get("/readyz", host="localhost").status_code == 200


def test_a_bug_is_500_without_its_trace(away: Any) -> None:
    # Given a store with a bug
    web = falcon.testing.TestClient(rest.build(Service(away)))
    away.error = ZeroDivisionError("secret detail")
    # Then the answer is a sentence that tells nothing of it
    answer = web.simulate_get("/api/v1/jobs/x", host="localhost")
    assert (answer.status_code, answer.json["status"]) == (500, 500)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


async def _many(gather: Gather[int, int], numbers: range) -> list[Any]:
    return await asyncio.gather(*(gather.submit(number) for number in numbers), return_exceptions=True)


def test_batches_form_while_the_store_is_busy() -> None:
    # Given a store that counts its calls
    calls: list[int] = []

    def double(numbers: Sequence[int]) -> list[int]:
        calls.append(len(numbers))
        return [2 * number for number in numbers]

    gather: Gather[int, int] = Gather(double)
    # When a hundred come at once
    answers = asyncio.run(_many(gather, range(100)))
    # Then each has its own answer, in few calls
    assert answers == [2 * number for number in range(100)]
    assert (sum(calls), len(calls) <= 3) == (100, True)
    gather.close()


def test_a_batch_that_fails_fails_for_each_in_it_and_no_longer() -> None:
    # Given a store that fails once
    fails = [True]

    def once(numbers: Sequence[int]) -> list[int]:
        if fails.pop() if fails else False:
            raise BackendDown
        return list(numbers)

    gather: Gather[int, int] = Gather(once)
    # When some come, then each hears of it; when others come, they are served
    assert all(isinstance(answer, BackendDown) for answer in asyncio.run(_many(gather, range(5))))
    assert asyncio.run(_many(gather, range(5))) == list(range(5))
    gather.close()


def test_a_server_starts_while_its_store_is_away(
    away: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a networked store that is made without asking anybody, and does not answer
    away.error = BackendDown("The store at example does not answer.")
    store, closed = away, threading.Event()
    monkeypatch.setattr(backends, "open", lambda _: store)
    monkeypatch.setattr(ticker, "AFTER_ERROR_S", 0.02)
    monkeypatch.setattr(Away, "close", closed.set, raising=False)
    server = wsgi.Application(ServerSettings(storage="redis://example", metrics_port=0), Gate(), [])
    with caplog.at_level("INFO"):
        web = falcon.testing.TestClient(server.load())
        try:
            # When somebody asks, then he is told when to come again; it lives, and is not ready
            for path in ("/ready", "/api/v1/jobs"):
                answer = web.simulate_get(path, host="localhost")
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert web.simulate_get("/health", host="localhost").status_code == 200
            assert "Once enqueue has answered" not in caplog.text
            # When the store is back, then it is ready, and says what the store promises
            away.error = None
            assert web.simulate_get("/ready", host="localhost").status_code == 200
            assert web.simulate_post("/api/v1/jobs", json={"type": "echo"}, host="localhost").status_code == 201
            for _ in range(500):
                if "Once enqueue has answered" in caplog.text:
                    break
                closed.wait(0.01)
            assert "Once enqueue has answered" in caplog.text
        finally:
            server.on_stop()
            server.on_end()
    assert closed.is_set()


class Scripted:
    """A backend that only ticks, as told."""

    def __init__(self, *script: Tick | Exception) -> None:
        self._script = list(script)
        self.ticks = threading.Semaphore(0)

    def tick(self) -> Tick:
        self.ticks.release()
        step = self._script.pop(0) if self._script else Tick()
        if isinstance(step, Exception):
            raise step
        return step


def test_a_ticker_comes_when_something_is_due(caplog: pytest.LogCaptureFixture) -> None:
    # Given a store where much is due, then something soon, something late, nothing, and then an outage of two ticks
    script = [Tick(promoted=9, next_in=0), Tick(next_in=0.3), Tick(next_in=99.0), Tick(), BackendDown(), BackendDown(), Tick()]
    ticking = Ticker(Scripted(*script))  # type: ignore[arg-type]
    # When it is ticked, then the next tick is then, or within a second
    with caplog.at_level("INFO", "gotask.ticker"):
        pauses = [ticking.once() for _ in script]
    assert pauses[:4] == [0.0, 0.3, AT_MOST_S, AT_MOST_S]
    # And the outage is told of once, and so is its end
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    # And one of a store that many share comes more seldom when nothing is known to be due
    calm = Ticker(Scripted(Tick(), Tick(next_in=0.3)), NETWORKED_S)  # type: ignore[arg-type]
    assert [calm.once(), calm.once()] == [NETWORKED_S, 0.3]


def test_a_ticker_promotes_and_stops(away: Any) -> None:
    # Given a job for a moment from now
    (made,) = away.enqueue_many([NewJob(type="echo", id="later", delay=0.05)])
    assert made.job.status == "SCHEDULED"
    # When a ticker runs, then the job is promoted without a node
    ticking = Ticker(away)
    ticking.start()
    watch = away.watch(["queue:default"])
    for _ in range(100):
        if away.get_many(["later"])[0].status == "PENDING":
            break
        watch.wait(0.1)
    assert away.get_many(["later"])[0].status == "PENDING"
    ticking.stop()
