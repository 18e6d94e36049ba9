"""The service over HTTP: the same methods with the same types, each made from its entry in CALLS."""

import inspect
import random
import time
import uuid
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Raw
from msgspec.structs import replace

import gotask.service
from gotask import __version__, clock
from gotask.calls import CALLS, WAIT_MAX_S, Batch, Call, JobList
from gotask.errors import BY_HTTP, BackendDown, GotaskError, InvalidInput, NotConfigured, ResultTimeout, Unauthorized
from gotask.model import Job, NewJob
from gotask.states import FINISHED

if TYPE_CHECKING:
    Operations = gotask.service.Service
else:
    Operations = object

ANSWER_S: Final = 30.0  #: seconds an answer may take, beyond what the call itself waits
CONNECT_S: Final = 5.0  #: seconds until a server that does not take the connection counts as down
TRIES: Final = 3
PAUSE_S: Final = 0.2  #: seconds before the second try; doubled, and shortened by chance, before each further one
#: calls that may be sent again although the first may have been carried out: jobs carry an id of ours
SAFE: Final = frozenset({"create_job", "create_jobs"})
AGAIN: Final = frozenset({429, 502, 503, 504})
REFUSED: Final[dict[int, type[GotaskError]]] = {**BY_HTTP, 400: InvalidInput, 403: Unauthorized, 415: InvalidInput}


class _Job(Job):
    """A job as it is read: msgspec decodes no union of Raw with null."""

    result: Raw = Raw(b"null")

    def __post_init__(self) -> None:
        if bytes(self.result) == b"null":
            self.result = None  # type: ignore[assignment]  # what Job has


class _JobList(JobList):
    jobs: list[_Job]  # type: ignore[assignment]  # lists are invariant, and this one is only read


READ_AS: Final[dict[Any, Any]] = {Job: _Job, JobList: _JobList}


class Request(NamedTuple):
    """A call, ready to be sent as often as needed."""

    call: Call
    path: str
    query: dict[str, Any]
    body: bytes | None
    seconds: float

    @property
    def safe(self) -> bool:
        return self.call.verb == "GET" or self.call.name in SAFE


def open(url: str, key: str | None = None) -> "Client":
    """A client of the server at `url`, such as http://localhost:8080, sending `key` if there is one."""
    return Client(url, key)


class Client(Operations):
    """The operations of a server. Raises what the service raises, and BackendDown when the server does not answer."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"User-Agent": f"gotask/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S))
        except (httpx.InvalidURL, ValueError) as error:
            raise NotConfigured(f"{url!r} is not the address of a server: {error}.") from None
        self._url = str(self._http.base_url).rstrip("/")
        if (rest := self._http.base_url.raw_path) != b"/":
            root = self._url.removesuffix(rest.decode().rstrip("/"))
            raise NotConfigured(f"The URL of a server takes no path: leave out {rest.decode()!r}, and write {root}.")

    def close(self) -> None:
        self._http.close()

    def wait_job(self, id: str, timeout: float = 30.0) -> Job:
        """Wait up to `timeout` seconds for a job to end, by as many long polls as that takes."""
        end = clock.monotonic() + timeout
        while True:
            left = max(0.0, end - clock.monotonic())
            job: Job = self._send(_request(CALLS["wait_job"], {"id": id, "timeout": min(left, WAIT_MAX_S)}))
            if job.status in FINISHED or clock.monotonic() >= end:
                return job

    def _send(self, request: Request) -> Any:
        for number in range(1, TRIES + 1):
            try:
                answer = self._http.request(
                    request.call.verb,
                    request.path,
                    params=request.query,
                    content=request.body,
                    headers={"Content-Type": "application/json"} if request.body is not None else None,
                    timeout=httpx.Timeout(ANSWER_S + request.seconds, connect=CONNECT_S),
                )
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if number == TRIES or not (unsent or request.safe):
                    raise self._down(error, unsent) from error
                pause = 0.0
            else:
                if answer.status_code not in AGAIN or number == TRIES or not request.safe:
                    return self._read(request.call, answer)
                pause = _seconds(answer.headers.get("Retry-After"))
            time.sleep(max(pause, PAUSE_S * 2 ** (number - 1)) * random.uniform(0.5, 1))
        raise AssertionError

    def _down(self, error: httpx.TransportError, unsent: bool) -> BackendDown:
        why = str(error) or type(error).__name__
        outcome = "check the address, and that the server runs" if unsent else "whether the call was carried out is unknown"
        return BackendDown(f"The server at {self._url} does not answer ({why}); {outcome}.")

    def _read(self, call: Call, answer: httpx.Response) -> Any:
        if answer.is_success:
            try:
                return msgspec.json.decode(answer.content, type=READ_AS.get(call.answer, call.answer))
            except msgspec.DecodeError as error:
                raise GotaskError(f"{self._url} is no GoTask server, or one of another version: {error}.") from None
        try:
            detail = msgspec.json.decode(answer.content)["detail"]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
            detail = f"{self._url} answered {answer.status_code} {answer.reason_phrase}, but not as a GoTask server does."
        kind = REFUSED.get(answer.status_code, GotaskError)
        if kind is ResultTimeout or answer.status_code == 502:  # a proxy's words for a server that does not answer
            kind = BackendDown
        raise kind(detail, retry_after=_seconds(answer.headers.get("Retry-After")) or None)


def _request(call: Call, arguments: dict[str, Any]) -> Request:
    path = call.path.format(**{name: quote(str(arguments[name]), safe="") for name in call.path_params})
    query = {name: arguments[name] for name in call.query_params}
    struct = arguments.get(call.argument)
    if call.query is not None:
        query |= {name: value for name, value in msgspec.to_builtins(struct).items() if value is not None}
    body = msgspec.json.encode(_named(struct)) if call.body is not None else None
    return Request(call, path, query, body, float(query.get("timeout", 0)))


def _named(struct: Any) -> Any:
    """Jobs get their ids here, so that they can be sent again without being made twice."""
    if isinstance(struct, NewJob):
        return struct if struct.id else replace(struct, id=str(uuid.uuid4()))
    return Batch([_with_id(raw) for raw in struct.jobs]) if isinstance(struct, Batch) else struct


def _with_id(raw: Raw) -> Raw:
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw  # the server says what is wrong with it
    if fields.get("id", Raw(b'""')) != Raw(b'""'):
        return raw
    return Raw(msgspec.json.encode({**fields, "id": str(uuid.uuid4())}))


def _seconds(header: str | None) -> float:
    return min(float(header), 5.0) if header is not None and header.isascii() and header.isdigit() else 0.0


def _method(call: Call) -> Callable[..., Any]:
    signature = inspect.signature(call.function)

    @wraps(call.function)
    def method(self: Client, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        return self._send(_request(call, bound.arguments))

    return method


for _call in CALLS.values():
    if _call.name not in vars(Client):
        setattr(Client, _call.name, _method(_call))
