"""What a running task may know and say of its own job: the parameter annotated `Context`."""

from math import isnan
from typing import Protocol

from msgspec import Struct, field

from gotask import clock
from gotask.errors import InvalidInput

Metadata = dict[str, str | int | float | bool | None]


class Line(Protocol):
    """The way from a task to its node. A node hands one to each Context it makes."""

    def report_progress(self, percent: float, note: str) -> None: ...

    def cancelled(self) -> bool: ...

    def cut_off(self) -> bool: ...


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
