"""What a running task may know and say of its own job: the parameter annotated `Context`."""

from math import isnan
from typing import Any, Protocol

from msgspec import Struct, field

from gotask import clock
from gotask.errors import InvalidInput

Metadata = dict[str, str | int | float | bool | None]


class Line(Protocol):
    """The way from a task to its node. A node hands one to each Context it makes."""

    def report_progress(self, percent: float, note: str) -> None: ...

    def cancelled(self) -> bool: ...

    def cut_off(self) -> bool: ...

    def complete(self, connection: Any, result: object) -> None: ...


class NoLine:
    """The line of a task that no node runs: a plain call, or a test. Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[float, str]] = []

    def report_progress(self, percent: float, note: str) -> None:
        self.said.append((percent, note))

    def cancelled(self) -> bool:
        return False

    def cut_off(self) -> bool:
        return False

    def complete(self, connection: Any, result: object) -> None:  # noqa: ARG002 - whatever they are
        raise InvalidInput("ctx.complete: there is no stored job to complete here; a node must be running this task for one.")


class Context(Struct):
    """The job a task is running. Without arguments: that of a plain call, which is no job at all."""

    id: str = ""
    type: str = ""
    queue: str = "default"
    attempt: int = 1  # 1 for the first run; crashes count too
    retry_count: int = 0  # runs in which the task failed
    lease: int = 0  # grows with every run of any job: a fencing token for the stores a task writes to
    metadata: Metadata | None = None
    ends_at: float | None = None  # gotask.clock.monotonic() at the time limit
    line: Line = field(default_factory=NoLine)

    def progress(self, percent: float, note: str = "") -> None:
        """Tell how far the job is, in per cent, for its page and for whoever waits. What is out of bounds is clipped."""
        if not isinstance(percent, (int, float)) or isnan(percent):
            raise InvalidInput(f"Progress is a number from 0 to 100, not {percent!r}.")
        if not isinstance(note, str):
            raise InvalidInput(f"The note of a progress is text, not {note!r}.")
        self.line.report_progress(min(max(float(percent), 0.0), 100.0), note)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for this job to stop. Long loops look at it, clean up and raise Cancel."""
        return self.line.cancelled()

    @property
    def cut_off(self) -> bool:
        """Whether the node lost its store for so long that another may be running this job by now."""
        return self.line.cut_off()

    @property
    def deadline(self) -> float | None:
        """Seconds left until the time limit (negative: past it); None without one."""
        return None if self.ends_at is None else self.ends_at - clock.monotonic()

    def complete(self, connection: Any, result: object = None) -> None:
        """End this job well in a transaction of your own, so that it is done if that commits, and not if it does not.

        `connection` is one of psycopg 3, or an SQLAlchemy session or connection, to the database that jobs are stored in.
        `result` is the job's; what the task returns after this counts for nothing. Commit before the task returns. Raises
        LeaseLost, and spoils the transaction, if this run does not hold the job any more.
        """
        self.line.complete(connection, result)
