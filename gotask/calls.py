"""What the API offers: each operation's verb, path, scope and types, read off the function that carries it out.

REST routes, the OpenAPI page and the HTTP client are made from CALLS; nothing about an operation is written twice.
"""

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct
from msgspec.structs import fields

from gotask import payload, sentences
from gotask.errors import InvalidInput
from gotask.model import BATCH_MAX, Job, Queue, Worker
from gotask.states import State

Verb = Literal["GET", "POST", "PUT", "DELETE"]
Scope = Literal["public", "read", "enqueue", "operate", "admin"]
F = TypeVar("F", bound=Callable[..., Any])

WAIT_MAX_S: Final = 60.0  #: seconds one long poll may last; proxies cut longer ones
Patience = Annotated[float, Meta(ge=0, le=WAIT_MAX_S)]


class Call(NamedTuple):
    """One operation. A Struct in the signature is the body (or, for a GET, the query); the rest is path and query."""

    name: str
    verb: Verb
    path: str
    scope: Scope
    status: int
    function: Callable[..., Any]
    path_params: dict[str, Any]
    query_params: dict[str, inspect.Parameter]
    query: type[Struct] | None
    body: type[Struct] | None
    argument: str  # the name of the parameter that `query` or `body` becomes
    answer: Any

    @property
    def summary(self) -> str:
        return inspect.getdoc(self.function) or self.name


#: Every operation by its name.
CALLS: Final[dict[str, Call]] = {}


def call(verb: Verb, path: str, scope: Scope, status: int = 200) -> Callable[[F], F]:
    """Mark a function as an API operation. `status` is the HTTP status of its success."""

    def register(function: F) -> F:
        CALLS[function.__name__] = _read(function, verb, path, scope, status)
        return function

    return register


def _read(function: Callable[..., Any], verb: Verb, path: str, scope: Scope, status: int) -> Call:
    hints = get_type_hints(function, include_extras=True)
    answer = hints.pop("return")
    in_path = re.findall(r"{(\w+)}", path)
    parameters = inspect.signature(function).parameters
    structs = [name for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Struct)]
    argument = structs[0] if structs else ""
    struct: type[Struct] | None = hints[argument] if structs else None
    return Call(
        name=function.__name__,
        verb=verb,
        path=path,
        scope=scope,
        status=status,
        function=function,
        path_params={name: hints[name] for name in in_path},
        query_params={
            name: parameters[name].replace(annotation=hint)
            for name, hint in hints.items()
            if name not in in_path and name != argument
        },
        query=struct if verb == "GET" else None,
        body=struct if verb != "GET" else None,
        argument=argument,
        answer=answer,
    )


class Malformed(InvalidInput):
    """The body is not valid JSON."""

    http: ClassVar[int] = 400
    title: ClassVar[str] = "Malformed JSON"


T = TypeVar("T", bound=Struct)


def decode(kind: type[T], raw: bytes) -> T:
    """A Struct from JSON. Raises Malformed, or InvalidInput naming the field."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(sentences.begun(sentences.sentence(error, kind, raw))) from None
    except RecursionError as error:
        raise InvalidInput(payload.unreadable(error, raw, "The body")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not raw.strip():
            raise Malformed("The body is empty; send a JSON object.") from None
        raise Malformed(payload.unreadable(error, raw, "The body")) from None


# What goes in and comes out beside the nouns of gotask.model.


class Message(Struct):
    """What was done, in a sentence."""

    message: str


class Health(Struct):
    """Whether this process lives, or is ready to serve."""

    status: str


class Batch(Struct, forbid_unknown_fields=True):
    """Jobs as they are asked for. They stay raw until each is looked at, so that a bad one cannot spoil the others."""

    jobs: Annotated[list[Raw], Meta(min_length=1, max_length=BATCH_MAX)]


class BatchItem(Struct, omit_defaults=True):
    """What became of one job of a batch. `status` and `error` are those the job alone would have been answered with.

    One that is `unavailable` was not accepted when the store failed: send it again. Only one whose
    sender gave it an id is certain not to be made twice.
    """

    outcome: Literal["created", "duplicate", "conflict", "invalid", "unavailable"]
    id: str | None = None
    status: State | None = None
    code: int | None = None  # HTTP status of a refusal
    error: str | None = None


class BatchAnswer(Struct):
    """One item for each job of the batch, in its order."""

    items: list[BatchItem]
    created: int
    duplicates: int
    refused: int


class JobList(Struct):
    """One page of jobs, newest first. `count` is that of the page."""

    jobs: list[Job]
    count: int
    limit: int
    offset: int
    next_cursor: str | None = None


class QueueList(Struct):
    """All queues, by name, those that nobody made but jobs are in among them."""

    queues: list[Queue]
    count: int


class WorkerList(Struct):
    """All nodes that the store knows of."""

    workers: list[Worker]
    count: int


class Purged(Message):
    """How many jobs a purge deleted."""

    deleted: int


class Metrics(Struct):
    """The system in numbers."""

    version: str
    uptime_seconds: float
    storage: str  # what an answered enqueue survives
    jobs: dict[str, int]  # by state
    queues: dict[str, dict[str, int]]  # by queue, by state
    paused: list[str]
    workers: int
    slots: int


if TYPE_CHECKING:

    class QueueChange(Struct):
        def __init__(self, **settings: Any) -> None: ...
else:
    #: A change of a queue's settings: every field of Queue, each free to be left out, and what is left out stays.
    QueueChange = defstruct(
        "QueueChange",
        [(field.name, field.type | UnsetType, UNSET) for field in fields(Queue)],
        forbid_unknown_fields=True,
        kw_only=True,
        module=__name__,
    )
