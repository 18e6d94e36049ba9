"""A job as Python code asks for it, on its way to the store: its fields looked at, its payload as JSON, many at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from gotask import payload, sentences
from gotask.errors import GotaskError, InvalidInput
from gotask.model import NewJob

T = TypeVar("T")
FIELDS: Final = dict.fromkeys(NewJob.__struct_fields__)
CHUNK: Final = 1000  #: jobs stored at once: what a store takes in one go without delaying others


class Within(NamedTuple):
    """A transaction of the caller's that jobs are to be part of."""

    connection: Any
    notify: bool = False


def within(options: Any, usual: Within | None = None) -> Within | None:
    """Take what concerns the caller's transaction out of the options; `usual` if they say nothing of it."""
    connection = options.pop("connection", usual and usual.connection)
    notify = options.pop("notify", usual is not None and usual.notify)
    if connection is None and notify:
        raise InvalidInput("notify: it is for jobs in a transaction of yours; name its connection too.")
    return None if connection is None else Within(connection, notify)


def encoded(value: object, *, typed_keys: bool = False) -> bytes:
    """A payload, or bytes that are one already, as JSON that a task can take. Raises InvalidInput or TooLarge."""
    try:
        raw = bytes(value) if isinstance(value, (bytes, Raw)) else payload.encode(value, typed_keys=typed_keys)
        if type(value) is not dict:
            payload.check_object(raw)
    except GotaskError as error:
        raise type(error)(f"payload: {error}") from None
    return raw


def with_payload(template: NewJob, raw: bytes) -> NewJob:
    job: NewJob = template.__copy__()  # type: ignore[attr-defined]  # every Struct has it; copy.copy takes thrice as long
    job.payload = Raw(raw)
    return job


def check_names(given: Mapping[str, Any], possible: Mapping[str, Any], noun: str) -> None:
    """Refuse a misspelt name before anything else is said: what it was meant for would seem to be missing."""
    for name in given:
        if name not in possible:
            raise InvalidInput(sentences.begun(sentences.unknown(str(name), possible, noun)))


@lru_cache(1024)  # checking a job costs more than all the rest of making it, and jobs of a batch differ little
def template(fields: tuple[tuple[str, Any], ...]) -> NewJob:
    return checked(dict(fields))


def checked(fields: Mapping[str, Any]) -> NewJob:
    """A job of these fields, without its payload. Raises InvalidInput naming the field."""
    given = sentences.seconds(fields)
    try:
        job = msgspec.convert(given, NewJob)
    except msgspec.ValidationError as error:
        raise InvalidInput(sentences.begun(sentences.sentence(error, NewJob, given))) from None
    check_times(job)
    check_words(job)
    return job


def check_words(job: NewJob) -> None:
    """Refuse what could not be written down; JSON that came in has been through that."""
    payload.check_text("unique_key", job.unique_key)
    if job.metadata:
        try:
            payload.encode(job.metadata)  # a NaN in it would become null
        except InvalidInput as error:
            raise InvalidInput(f"metadata: {error}") from None


#: the first and the last of times that a job may name; every store can keep them, to the microsecond
YEARS: Final = (1970, 2999)


def check_times(job: NewJob) -> None:
    if job.delay is not None and job.scheduled_at is not None:
        raise InvalidInput("delay: a job has either a delay or scheduled_at, not both.")
    for name, moment in (("scheduled_at", job.scheduled_at), ("expires_at", job.expires_at)):
        if moment is not None and not YEARS[0] <= moment.year <= YEARS[1]:
            raise InvalidInput(f"{name}: a time in the years {YEARS[0]} to {YEARS[1]} is expected; for never, leave it out.")


def chunks(items: Iterable[T]) -> Iterator[tuple[int, list[T]]]:
    """(index of the first, items), a thousand at a time, without asking for more than are about to be stored."""
    rest, start = iter(items), 0
    while chunk := list(islice(rest, CHUNK)):
        yield start, chunk
        start += len(chunk)


def each(start: int, chunk: Sequence[T], make: Callable[[T], NewJob]) -> list[NewJob]:
    """The job of each item; what is wrong with one is told with its index."""
    jobs: list[NewJob] = []
    try:
        for item in chunk:
            jobs.append(make(item))
    except GotaskError as error:
        raise type(error)(f"Item {start + len(jobs)}: {error}") from None
    return jobs
