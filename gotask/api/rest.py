"""The REST API: routes made from CALLS, and how a request becomes a call of the service.

Calls of the store run in a bounded pool of threads, never on the event loop. Two are treated apart: creates are gathered
into batches, and so are the looks of long polls, which wait on no thread at all.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import falcon
import falcon.asgi
import msgspec

from gotask import clock, sentences
from gotask.api import openapi, problem
from gotask.api.auth import Gate
from gotask.api.gather import Gather
from gotask.api.longpoll import LongPoll
from gotask.api.problem import Problem
from gotask.api.writes import Writes
from gotask.calls import CALLS, WAIT_MAX_S, Call, Scope, decode
from gotask.errors import BackendDown, InvalidInput, Overloaded, TooLarge
from gotask.model import Enqueued, Job, NewJob
from gotask.service import Service, accepted, admitted, existing, told
from gotask.states import FINISHED

BODY_MAX: Final = 2 * 2**20  #: bytes of a body; a payload may have half of it
BATCH_BODY_MAX: Final = 32 * 2**20  #: bytes of the body of a batch
INLINE_MAX: Final = 16_384  #: bytes of a body that is decoded on the event loop; others would wait too long for a larger one
THREADS: Final = 8  #: calls of the store at once
BACKLOG: Final = 1000  #: calls that may wait for a thread
READY_S: Final = 2.0  #: seconds within which the store must answer to count as ready
METRICS: Final = "/metrics"
PROBES: Final = frozenset(call.path for call in CALLS.values() if call.scope == "public")

Responder = Callable[..., Coroutine[Any, Any, None]]


class Edge:
    """What the routes of one server process share."""

    def __init__(self, service: Service, gate: Gate) -> None:
        self.service = service
        self.gate = gate
        self.longpoll = LongPoll(service.backend)
        self._creates: Gather[NewJob, Enqueued] = Gather(service.enqueue_each)
        self._looks: Gather[str, Job | None] = Gather(lambda ids: service.backend.get_many(ids))
        self._pool = ThreadPoolExecutor(THREADS, "call")
        self._probe = ThreadPoolExecutor(1, "ready")
        self._probing: asyncio.Future[bytes] | None = None
        self._writes = Writes()
        self._under_way = 0

    def close(self) -> None:
        self.longpoll.close()
        self._creates.close()
        self._looks.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._probe.shutdown(wait=False, cancel_futures=True)

    async def carry_out(self, call: Call, arguments: dict[str, Any]) -> tuple[int, bytes]:
        """The status and JSON that answer a call. Whether enqueues succeed is kept for those who ask for readiness."""
        if call.scope != "enqueue":
            return await self._carry_out(call, arguments)
        try:
            answer = await self._carry_out(call, arguments)
        except BackendDown as error:
            self._writes.failed(error)
            raise
        self._writes.worked()
        return answer

    async def _carry_out(self, call: Call, arguments: dict[str, Any]) -> tuple[int, bytes]:
        if call.name == "create_job":
            return await self._create(arguments["job"])
        if call.name == "wait_job":
            return call.status, await self._wait(**arguments)
        if call.name in ("ready", "readyz"):
            return call.status, await self._ready(call)
        if call.scope == "public":  # liveness does not depend on a free thread
            return call.status, _encoded(self.service, call, arguments)
        return call.status, await self.run(partial(_encoded, self.service, call, arguments))

    async def run(self, work: Callable[[], Any]) -> Any:
        """`work` on a thread of the pool. Raises Overloaded when too much waits for one."""
        if self._under_way >= BACKLOG:
            raise Overloaded("Too many requests wait for the store; try again in a moment.", retry_after=1.0)
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._under_way -= 1

    async def _create(self, job: NewJob) -> tuple[int, bytes]:
        answer = await self._creates.submit(job)
        return 201 if answer.outcome == "created" else 200, msgspec.json.encode(accepted(answer))

    async def _wait(self, id: str, timeout: float) -> bytes:
        end = clock.monotonic() + timeout
        while True:
            job = existing(id, await self._looks.submit(id))
            left = end - clock.monotonic()
            if job.status in FINISHED or left <= 0 or self.longpoll.closed:
                return msgspec.json.encode(told(job))
            await self.longpoll.wait(id, left)

    async def _ready(self, call: Call) -> bytes:
        """One question at a time, on a thread of its own: neither many probes nor a full pool change its answer."""
        if self._probing is None or self._probing.done():
            loop = asyncio.get_running_loop()
            self._probing = loop.run_in_executor(self._probe, _encoded, self.service, call, {})
            self._probing.add_done_callback(lambda late: late.cancelled() or late.exception())  # looked at, if nobody waits
        done, _ = await asyncio.wait([self._probing], timeout=READY_S)
        if not done:
            raise BackendDown(f"The store did not answer within {READY_S:g} seconds.")
        answer = self._probing.result()
        self._writes.check()
        return answer


class Screen:
    """Middleware: what holds for every request and every answer."""

    def __init__(self, gate: Gate, metrics_port: int) -> None:
        self._gate = gate
        self._metrics_port = metrics_port

    async def process_request(self, req: falcon.asgi.Request, _resp: falcon.asgi.Response) -> None:
        self._gate.screen(req)
        if not self._metrics_port:
            return
        server = req.scope.get("server")
        if server is not None and server[1] == self._metrics_port:
            if req.path != METRICS and req.path not in PROBES:
                raise Problem(404, f"This port serves {METRICS} and health checks; ask the other one for {req.path}.")
        elif req.path == METRICS:
            raise Problem(404, f"Metrics are served on port {self._metrics_port}.")

    async def process_response(self, _req: Any, resp: falcon.asgi.Response, _resource: object, _ok: bool) -> None:
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.set_header("Cache-Control", "no-store")


def build(service: Service, gate: Gate | None = None) -> falcon.asgi.App[Any, Any]:
    """The ASGI application of a service."""
    return assemble(Edge(service, gate or Gate()))


def assemble(
    edge: Edge, exposition: Callable[[], tuple[str, bytes]] | None = None, metrics_port: int = 0
) -> falcon.asgi.App[Any, Any]:
    """The ASGI application. `exposition` makes the Prometheus page (content type, body), served on `metrics_port` only."""
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App(middleware=[Screen(edge.gate, metrics_port)])
    problem.install(app)
    for path, calls in _by_path().items():
        app.add_route(path, _resource({call.verb: _responder(edge, call, fixed) for call, fixed in calls}))
    app.add_route("/api/v1/openapi.json", _resource({"GET": _page(edge, "read", openapi.page)}))
    if exposition is not None:
        app.add_route(METRICS, _resource({"GET": _page(edge, "read", exposition)}))
    return app


def _by_path() -> dict[str, list[tuple[Call, dict[str, str]]]]:
    """Calls by path. A path like /jobs/batch hides the job of that id, so it answers for it too."""
    paths: dict[str, list[tuple[Call, dict[str, str]]]] = {}
    for call in CALLS.values():
        paths.setdefault(call.path, []).append((call, {}))
    for path, calls in list(paths.items()):
        parent, _, last = path.rpartition("/")
        for hidden in CALLS.values():
            above, _, parameter = hidden.path.rpartition("/")
            if above == parent and parameter.startswith("{") and not last.startswith("{"):
                calls.append((hidden, {parameter.strip("{}"): last}))
    return paths


def _resource(responders: dict[str, Responder]) -> object:
    methods = {f"on_{verb.lower()}": staticmethod(responder) for verb, responder in responders.items()}
    if "on_get" in methods:
        methods["on_head"] = methods["on_get"]  # load balancers probe with it
    return type("Resource", (), methods)()


def _responder(edge: Edge, call: Call, fixed: dict[str, str]) -> Responder:
    async def respond(req: falcon.asgi.Request, resp: falcon.asgi.Response, **path: str) -> None:
        edge.gate.admit(req, call.scope)
        arguments: dict[str, Any] = {**path, **fixed, **_query(req, call)}
        if call.body is not None:
            arguments[call.argument] = await _body(req, edge, call)
        elif req.content_length:
            _check_type(req)
        status, resp.data = await edge.carry_out(call, arguments)
        resp.status = status
        resp.content_type = "application/json"

    return respond


def _page(edge: Edge, scope: Scope, make: Callable[[], tuple[str, bytes]]) -> Responder:
    async def respond(req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        edge.gate.admit(req, scope)
        resp.content_type, resp.data = await edge.run(make)

    return respond


def _encoded(service: Service, call: Call, arguments: dict[str, Any]) -> bytes:
    return msgspec.json.encode(getattr(service, call.name)(**arguments))


def _query(req: falcon.asgi.Request, call: Call) -> dict[str, Any]:
    given: Mapping[str, Any] = req.params
    if call.query is not None:
        if isinstance(status := given.get("status"), str):
            given = {**given, "status": status.upper()}
        try:
            return {call.argument: msgspec.convert(given, call.query, strict=False)}
        except msgspec.ValidationError as error:
            raise InvalidInput(sentences.begun(sentences.sentence(error, call.query, given, "parameter"))) from None
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in call.query_params:
            raise InvalidInput(sentences.begun(sentences.unknown(name, call.query_params, "parameter")))
        try:
            found[name] = msgspec.convert(value, call.query_params[name].annotation, strict=False)
        except msgspec.ValidationError:
            raise InvalidInput(f"{name}: {value[:64]!r} is not a number of seconds from 0 to {WAIT_MAX_S:g}.") from None
    return {name: parameter.default for name, parameter in call.query_params.items()} | found


def _check_type(req: falcon.asgi.Request) -> None:
    kind = (req.content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(415, f"The body is {kind[:64]!r}; send JSON, with 'Content-Type: application/json'.")
    if encoding := req.get_header("Content-Encoding"):
        raise Problem(415, f"The body is encoded as {encoding[:64]!r}; send it as it is.")


async def _body(req: falcon.asgi.Request, edge: Edge, call: Call) -> Any:
    _check_type(req)
    assert call.body is not None
    raw = await _read(req, BATCH_BODY_MAX if call.name == "create_jobs" else BODY_MAX)
    work = partial(_admitted, raw) if call.body is NewJob else partial(decode, call.body, raw)
    return work() if len(raw) <= INLINE_MAX else await edge.run(work)


def _admitted(raw: bytes) -> NewJob:
    return admitted(decode(NewJob, raw))


async def _read(req: falcon.asgi.Request, most: int) -> bytes:
    """The body, counted while it comes in: neither its length's header nor its absence is trusted."""
    parts: list[bytes] = []
    length = req.content_length or 0
    if length <= most:
        length = 0
        async for part in req.stream:
            length += len(part)
            if length > most:
                break
            parts.append(part)
    if length > most:
        raise TooLarge(f"The body is larger than {most} bytes: send less, or several requests.")
    return b"".join(parts)
