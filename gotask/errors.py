"""Every error GoTask raises, one level deep. The docstring is the default message.

    GotaskError
    ├── InvalidInput     422   a field, an argument, a setting
    ├── TooLarge         413   a body, a payload, a result
    ├── Unauthorized     401
    ├── NotFound         404
    ├── Conflict         409   wrong state, or a known id with another body
    ├── Overloaded       429   try again later
    ├── BackendDown      503   the store does not answer; the outcome may be unknown
    ├── NotConfigured    500   a setting is missing or names something that is not there
    ├── LeaseLost        409   a run whose job is not its own any more
    ├── JobFailed        -     what `job.result()` raises for a job that ended without success
    └── ResultTimeout    504   the job has not ended yet

`Retry` and `Cancel` are not errors: a task raises them to say what should become of its job.
"""

from math import inf
from typing import ClassVar


class GotaskError(Exception):
    """Something went wrong inside GoTask; the log of the process that answered has the details."""

    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    title: ClassVar[str] = "Internal error"

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        self.retry_after = retry_after  #: seconds, for the answers that ask the caller to wait


class InvalidInput(GotaskError):
    """The request has a field that GoTask cannot accept."""

    http, grpc, title = 422, "INVALID_ARGUMENT", "Invalid input"


class TooLarge(GotaskError):
    """The body is larger than GoTask accepts."""

    http, grpc, title = 413, "RESOURCE_EXHAUSTED", "Too large"


class Unauthorized(GotaskError):
    """This server needs an API key: send it as 'Authorization: Bearer <key>'."""

    http, grpc, title = 401, "UNAUTHENTICATED", "Unauthorized"


class NotFound(GotaskError):
    """There is nothing of that name."""

    http, grpc, title = 404, "NOT_FOUND", "Not found"


class Conflict(GotaskError):
    """That is not possible in the state the object is in."""

    http, grpc, title = 409, "FAILED_PRECONDITION", "Conflict"


class Overloaded(GotaskError):
    """Too much at once: try again in a moment."""

    http, grpc, title = 429, "RESOURCE_EXHAUSTED", "Too many requests"


class BackendDown(GotaskError):
    """The store does not answer; try again, with the same id if the job must not be made twice."""

    http, grpc, title = 503, "UNAVAILABLE", "Storage unavailable"

    def __init__(self, message: str | None = None, *, retry_after: float | None = 1.0, refused: bool = False) -> None:
        super().__init__(message, retry_after=retry_after)
        self.refused = refused  #: the store will refuse the like for a while: it is full, say. Of a batch, a part may be done


class NotConfigured(GotaskError):
    """A setting is missing, or names something that is not there."""

    http, grpc, title = 500, "FAILED_PRECONDITION", "Not configured"


class LeaseLost(GotaskError):
    """This run does not hold its job any more: let this error pass, so that nothing of your transaction is kept."""

    http, grpc, title = 409, "FAILED_PRECONDITION", "Lease lost"


class JobFailed(GotaskError):
    """The job ended without success."""

    http, grpc, title = 500, "ABORTED", "Job failed"

    def __init__(
        self, message: str | None = None, *, job_id: str = "", reason: str = "", error_type: str | None = None
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.reason = reason  #: why, in a line: for an exception its class and the first line of its message
        self.error_type = error_type  #: the name of the exception's class, such as "ValueError"; None if it was none

    def __reduce__(self) -> tuple[object, ...]:  # else a pool of processes would lose what was said by keyword
        return (type(self), self.args, vars(self))


class ResultTimeout(GotaskError):
    """The job has not ended yet."""

    http, grpc, title = 504, "DEADLINE_EXCEEDED", "Not finished yet"


BY_HTTP: dict[int, type[GotaskError]] = {
    kind.http: kind
    for kind in (InvalidInput, TooLarge, Unauthorized, NotFound, Conflict, Overloaded, BackendDown, ResultTimeout)
}


def _delay(seconds: object, signal: str) -> float:
    """A delay as a task names it. Raises InvalidInput for what is no number of seconds from 0 up."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < inf:
        raise InvalidInput(f"{signal} takes a number of seconds from 0 up, not {seconds!r}.")
    return float(seconds)


class Retry(Exception):
    """Raise it in a task to run the job again in `seconds` (its own backoff if None); it counts as a failed attempt."""

    def __init__(self, seconds: float | None = None, reason: str = "") -> None:
        super().__init__(reason or "the task asked for a retry")
        self.seconds = None if seconds is None else _delay(seconds, "Retry")


class Snooze(Exception):
    """Raise it in a task to run the job again in `seconds` without burning an attempt."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason or "the task asked to be woken later")
        self.seconds = _delay(seconds, "Snooze")


class Cancel(Exception):
    """Raise it in a task to end its job as CANCELLED."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the task cancelled itself")


class TimeLimit(BaseException):
    """Raised inside a task whose time limit has passed. A BaseException, so that `except Exception` does not eat it."""


class Cancelled(BaseException):
    """Raised inside a task whose job was cancelled. Clean up and let it pass."""
