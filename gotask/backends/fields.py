"""The fields of `Job` as every store needs them: their names and types, a job's birth, and when two enqueues are one.

Nothing here names a field but to say that it is special, so that a field added to the Struct is a field in every store.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

from msgspec.structs import fields

from gotask.errors import InvalidInput
from gotask.model import ERROR_MAX, Enqueued, Filter, Job, JobBody, NewJob, Rules
from gotask.payload import check_text, is_text
from gotask.states import Event, State

NAMES: Final = tuple(field.name for field in fields(Job))
BY_HAND: Final = (Event.CANCEL, Event.REVIVE)  #: what people may ask of a job
BODY: Final = tuple(field.name for field in fields(JobBody))


def _plain(hint: Any) -> Any:
    """The type of a field without its `| None`."""
    options = [option for option in get_args(hint) if option is not NoneType] if NoneType in get_args(hint) else [hint]
    return options[0]


def _kinds() -> dict[str, Any]:
    hints = get_type_hints(Job)
    return {name: _plain(hints[name]) for name in NAMES}


#: field -> its type without `| None`
KINDS: Final = _kinds()


def compiled(source: str, scope: dict[str, Any]) -> Callable[..., Any]:
    """Generated once at import: a loop over fields would cost each job as much as all that the store does with it."""
    scope = dict(scope)
    exec(source, scope)
    made: Callable[..., Any] = scope["made"]
    return made


def argument(name: str, value: str) -> str:
    """A field in the call that makes a Job: by position, which is faster, but for those that go by keyword only."""
    return f"{name}={value}" if name in Rules.__struct_fields__ else value


def _born() -> Callable[[NewJob, str, State, datetime | None, datetime], Job]:
    decided = {"id": "id", "status": "status", "due_at": "due_at", "created_at": "at", "updated_at": "at"}
    defaults = {field.name: field.default for field in fields(Job)}
    made = {name: decided.get(name) or (f"new.{name}" if name in BODY else repr(defaults[name])) for name in NAMES}
    parts = [argument(name, value) for name, value in made.items()]
    return compiled(f"def made(new, id, status, due_at, at):\n return Job({', '.join(parts)})", {"Job": Job})


#: a NewJob as the Job it becomes, with what the store decides: id, state, due time, now
born: Final = _born()


def same_body(new: NewJob, job: Job) -> bool:
    """Whether a second enqueue of an id asks for the job that stands. A dead letter is judged by the queue it came from."""
    return all(
        bytes(new.payload) == bytes(job.payload)
        if name == "payload"
        else getattr(new, name) == ((job.origin_queue or job.queue) if name == "queue" else getattr(job, name))
        for name in BODY
        if name != "id"
    )


def stands(new: NewJob, job: Job) -> Enqueued:
    """The answer to an enqueue whose id a job has already."""
    return Enqueued("duplicate" if same_body(new, job) else "conflict", job)


def check_by_hand(event: Event) -> None:
    """Raise InvalidInput for an event that only the holder of a job's lease can ask for."""
    if event not in BY_HAND:
        raise InvalidInput(f"{event.value} is settled by the holder of the lease; by hand a job can be cancelled or revived.")


def check_texts(items: Sequence[Any], *names: str) -> None:
    """Raise InvalidInput for an item one of whose texts, by the names of their fields, no store can keep."""
    for name in names:
        for text in map(attrgetter(name), items):
            if text is not None:
                check_text(name, text)


def is_name(text: str) -> bool:
    """Whether a store can be asked for a job, a queue or a type of this name: those that there are pass, and a bit more."""
    return text.isascii() and "\0" not in text


def can_match(filter: Filter) -> bool:
    """Whether there can be a job with the texts that a filter asks for."""
    names, texts = (filter.queue, filter.type), (filter.worker_id, filter.unique_key)
    return all(name is None or is_name(name) for name in names) and all(text is None or is_text(text) for text in texts)


def cut(text: str | None) -> str | None:
    """An error text, as much of it as is kept."""
    return text if text is None or len(text) <= ERROR_MAX else text[:ERROR_MAX]
