"""The user's door: an app with its tasks, and every way to enqueue a job.

Nothing is opened by importing an app. The store, or the server, is connected to at first use, once per process, so that an
app may be made before a fork and used after it.
"""

import inspect
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypedDict, TypeVar, Unpack, cast, overload

import msgspec
from msgspec.structs import asdict

from gotask import draft
from gotask.context import Context, Metadata
from gotask.draft import Within
from gotask.errors import InvalidInput
from gotask.handle import JobHandle, QueueHandle, handed_in, in_thread
from gotask.model import NewJob
from gotask.task import Misfit, Task, TaskOptions, Tasks

if TYPE_CHECKING:
    from gotask.service import Service

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_NOTHING: Final[dict[str, Any]] = {}


class JobOptions(TypedDict, total=False):
    """What can be said of one job beside its arguments. Durations are seconds or timedeltas. The names are those of REST."""

    id: str
    queue: str
    priority: int
    delay: float | timedelta | None
    scheduled_at: datetime | None
    expires_at: datetime | None
    unique_key: str | None
    max_retries: int | None
    retry_strategy: str | None
    retry_delay: float | timedelta | None
    max_retry_delay: float | timedelta | None
    retry_jitter: bool | None
    timeout: float | timedelta | None
    metadata: Metadata | None
    connection: Any  # of psycopg or SQLAlchemy: the job is part of its transaction (storage postgres)
    notify: bool  # with `connection`: its commit tells nodes at once, and waits for other commits that tell


class Sender(Generic[P, R]):
    """Enqueues jobs of one task, with the options it was made with."""

    def __init__(self, app: "GoTask", task: Task[P, R], template: NewJob, within: Within | None = None) -> None:
        self._app = app
        self._task = task
        self._template = template
        self._within = within
        self._read: Callable[[bytes], R] = _reader(task)

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Store a job that will call the task with these arguments; it is durable when this returns."""
        return self._app._store([self._filled(self._task.bind(*args, **kwargs))], self._read, self._within)[0]

    delay = enqueue

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """`enqueue` for coroutines."""
        return await in_thread(self.enqueue, *args, **kwargs)

    def map(self, items: Iterable[Any]) -> list[JobHandle[R]]:
        """Enqueue a job for each item, many at a time: a mapping holds named arguments, a tuple those by position."""
        handles: list[JobHandle[R]] = []
        for start, chunk in draft.chunks(items):
            handles += self._app._store(draft.each(start, chunk, self._for), self._read, self._within)
        return handles

    def options(self, **options: Unpack[JobOptions]) -> "Sender[P, R]":
        """The same task with options for the jobs enqueued through it: `task.options(delay=60).enqueue(...)`."""
        draft.check_names(options, JobOptions.__annotations__, "option")
        within = draft.within(options, self._within)
        return Sender(self._app, self._task, self._merged(options), within)

    def _merged(self, options: JobOptions) -> NewJob:
        return draft.checked({name: value for name, value in asdict(self._template).items() if name != "payload"} | options)

    def _for(self, item: Any) -> NewJob:
        if isinstance(item, Mapping):
            return self._filled(self._task.bind(**item))
        return self._filled(self._task.bind(*item) if isinstance(item, tuple) else self._task.bind(item))

    def _filled(self, raw: bytes) -> NewJob:
        return draft.with_payload(self._template, raw)


class AppTask(Task[P, R], Sender[P, R]):
    """A task of an app: the function, and the ways to enqueue it."""

    def __init__(self, app: "GoTask", function: Callable[..., Any], **options: Unpack[TaskOptions]) -> None:
        Task.__init__(self, function, **options)
        self.__name__, self.__doc__, self.__wrapped__ = self.type, function.__doc__, function
        Sender.__init__(self, app, self, NewJob(type=self.type, queue=self.queue, priority=self.priority))

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """The plain call: the function, now and here. A context it wants is that of no job."""
        place = self.context_place
        if self.context_parameter is None or self.context_parameter in kwargs or any(isinstance(arg, Context) for arg in args):
            return self.function(*args, **kwargs)
        if place < len(args):
            return self.function(*args[:place], Context(), *args[place:], **kwargs)
        return self.function(*args, **kwargs, **{self.context_parameter: Context()})


class SyncTask(AppTask[P, R]):
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, self._run(*args, **kwargs))


class AsyncTask(AppTask[P, R]):
    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, await self._run(*args, **kwargs))


class _Nobody:
    """For type checkers: what only a parameter without a hint would take."""


class Decorator:
    """`@app.task` and `@app.task(...)`. A first parameter annotated Context is filled in by GoTask, not by callers."""

    def __init__(self, app: "GoTask", options: TaskOptions) -> None:
        self._app = app
        self._options = options

    # where two of these fit, the first is meant: parameters without hints take anything, and a coroutine is a value too
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[_Nobody, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[..., R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[_Nobody, P], R], /) -> SyncTask[..., R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], R], /) -> SyncTask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskOptions]) -> "Decorator": ...

    def __call__(self, function: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
        if function is None:
            return Decorator(self._app, {**self._options, **options})
        kind = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
        task: AppTask[..., Any] = kind(self._app, function, **self._options)
        self._app.tasks.add(task)
        return task


class GoTask:
    """An app: tasks, and the store or server their jobs go to.

    `url` is a storage (`memory://name`, `sqlite:///jobs.db`, ...) or a server (`http://host:8080`). Without one it is what
    GOTASK_STORAGE or gotask.toml say, as for every program of GoTask, else the SQLite file of this user.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        self.url = url  #: as given; None if it is left to the environment
        self.tasks = Tasks()
        self.task = Decorator(self, {})
        self._api_key = api_key
        self._services: dict[int, Service] = {}  # by process: another one's is not ours to use or close
        self._locks: dict[int, Lock] = {}  # by process too, as a fork may copy one that is held
        self._stand_in: Service | None = None  # gotask.testing puts one here

    def __repr__(self) -> str:
        return f"<GoTask {', '.join(self.tasks) or 'without tasks'}>"  # not the url: it may hold a password

    def __enter__(self) -> "GoTask":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connection; the next use opens another."""
        service = self._services.pop(os.getpid(), None)
        if service is not None:
            service.close()

    @property
    def service(self) -> "Service":
        """The operations of the store or server, connected to at first use."""
        if self._stand_in is not None:
            return self._stand_in
        process = os.getpid()
        service = self._services.get(process)
        if service is None:
            with self._locks.setdefault(process, Lock()):
                service = self._services.get(process) or _connect(self.url, self._api_key)
                self._services[process] = service
        return service

    def enqueue(self, type: str, payload: object = None, /, **options: Unpack[JobOptions]) -> JobHandle[Any]:
        """Enqueue a job by its type's name, also one whose task is not in this program."""
        draft.check_names(options, JobOptions.__annotations__, "option")
        within = draft.within(options)
        given = {"type": type, "payload": {} if payload is None else payload, **options}
        return self._store([self._new_job(given)], within=within)[0]

    async def aenqueue(self, type: str, payload: object = None, /, **options: Unpack[JobOptions]) -> JobHandle[Any]:
        """`enqueue` for coroutines."""
        return await in_thread(self.enqueue, type, payload, **options)

    def enqueue_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[JobHandle[Any]]:
        """Enqueue jobs given by the fields of the REST API (`type`, `payload`, `queue`, ...), a thousand at a time.

        A bad one raises InvalidInput naming its index; by then the thousands before its own are stored.
        """
        handles: list[JobHandle[Any]] = []
        for start, chunk in draft.chunks(jobs):
            handles += self._store(draft.each(start, chunk, self._new_job))
        return handles

    def job(self, id: str) -> JobHandle[Any]:
        """The job of that id. Nothing is asked before its first field is."""
        return JobHandle(self, id)

    def queue(self, name: str = "default") -> QueueHandle:
        return QueueHandle(self, name)

    def _new_job(self, given: Mapping[str, Any]) -> NewJob:
        if type(given) is not dict and not isinstance(given, Mapping):
            raise InvalidInput(f"A job is a mapping such as {{'type': 'mail', 'payload': {{}}}}, not {given!r:.100}.")
        draft.check_names(given, draft.FIELDS, "field")
        fields = dict(given)
        value, kind = fields.pop("payload", _NOTHING), fields.get("type")
        task = self.tasks.get(kind) if isinstance(kind, str) else None
        raw = draft.encoded(value, typed_keys=task is not None)
        if task is not None:
            fields.setdefault("queue", task.queue)
            fields.setdefault("priority", task.priority)
            try:
                task.decode(raw)
            except Misfit as error:
                raise InvalidInput(str(error)) from None
        try:
            sound = draft.template(tuple(fields.items()))
        except TypeError:  # not hashable: metadata, or a value that cannot be right
            sound = draft.checked(fields)
        return draft.with_payload(sound, raw)

    def _store(
        self, jobs: list[NewJob], read: Callable[[bytes], T] = msgspec.json.decode, within: Within | None = None
    ) -> list[JobHandle[T]]:
        return handed_in(self, jobs, read, within)


def _connect(url: str | None, api_key: str | None) -> "Service":
    # imported here, so that importing an app costs neither an HTTP library nor a database
    if url is None or api_key is None:
        from gotask import config
        from gotask.settings import ClientSettings

        settings = config.load(ClientSettings)
        url, api_key = url or settings.url, api_key or settings.api_key
    if url.startswith(("http://", "https://")):
        # by name, because the client is an edge, and no part of what lies below
        return cast("Service", import_module("gotask.client").open(url, api_key))
    from gotask import backends
    from gotask.service import Service

    return Service(backends.open(url))


def _reader(task: Task[P, R]) -> Callable[[bytes], R]:
    """What turns a stored result into the task's return type again, or into plain values where JSON knows no way."""
    try:
        return msgspec.json.Decoder(task.returns).decode
    except (TypeError, NameError):
        return msgspec.json.decode
