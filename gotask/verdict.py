"""What an exception says about a job. Pure, so that a node and the test kit judge alike."""

import asyncio
import traceback
from typing import Any, Final

from gotask.errors import Cancel, Cancelled, Retry, Snooze, TimeLimit
from gotask.model import ERROR_MAX
from gotask.policy import Outcome
from gotask.task import Misfit, Task

Interrupt = type[TimeLimit] | type[Cancelled]
#: modules whose frames a traceback begins with, and which tell its reader nothing
OURS: Final = ("gotask.node", "gotask.task", "gotask.testing")


def judge(task: Task[..., Any], error: BaseException, limit: float) -> Outcome:
    """How a run of `task` ended that raised `error`; `limit` is its time limit in seconds.

    What would end a program, such as SystemExit, ends only the job.
    """
    match error:
        case Misfit():
            return Outcome("misfit", clean(str(error)))
        case Retry():
            return Outcome("retry", text(error), error.seconds)
        case Snooze():
            return Outcome("snooze", clean(str(error)), error.seconds)
        case Cancel():
            return Outcome("cancelled", clean(str(error)))
        case Cancelled():
            return Outcome("cancelled", "stopped on request")
        case TimeLimit():
            return Outcome("timeout", f"TimeLimit: it ran longer than its {limit:g} seconds\n{text(error)}")
    return Outcome("failed", text(error), retryable=task.may_retry(error) or not isinstance(error, Exception))


def uncommitted(outcome: Outcome, was_open: bool) -> Outcome:
    """What a run came to that completed its job in a transaction which did not commit; `outcome` is how it ended by itself."""
    if outcome.verdict != "done":
        return outcome
    hint = "was still open when the task returned; commit it before" if was_open else "was rolled back, or never committed"
    return Outcome("failed", f"the transaction in which the task completed its job did not commit: it {hint}")


def text(error: BaseException) -> str:
    """The traceback as text, its end kept if it is long, without the frames of ours that it begins with."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(OURS):
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace, limit=-50)
    except Exception:  # a broken __str__ of the user's must not cost the report
        lines = [type(error).__name__]
    return clean("".join(lines)[-ERROR_MAX:].rstrip())


def clean(text: str) -> str:
    """Without what UTF-8 cannot say, such as a file name's stray bytes."""
    return text.encode(errors="backslashreplace").decode()


def interruption(error: BaseException, interrupt: Interrupt | None) -> BaseException:
    """A coroutine is interrupted by cancellation: put the real cause in its place."""
    if interrupt is not None and isinstance(error, asyncio.CancelledError):
        return interrupt().with_traceback(error.__traceback__)
    return error
