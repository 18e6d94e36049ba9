"""Every noun of GoTask, each field once, with its bounds and unit.

Columns, JSON, REST parameters and the CLI's tables are derived from these Structs. Times are aware UTC datetimes here and
RFC 3339 on the wire; durations are seconds. Payloads and results are JSON, kept as the bytes they came in.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Raw, Struct

from gotask.states import Event, State

NAME_PATTERN: Final = r"^[A-Za-z0-9_.:-]{1,128}$(?!\n)"  # `$` alone would let a line break at the end pass
NAME_OR_NOTHING: Final = NAME_PATTERN.replace("{1,", "{0,")
PAYLOAD_MAX: Final = 1_048_576  #: bytes, of a payload and of a result each
ERROR_MAX: Final = 16_384  #: characters of an error text that are kept
ATTEMPTS_KEPT: Final = 20  #: the latest attempts of a job that stay listed
CRASHES_MAX: Final = 3  #: a job that kills its worker this often is poison
PRIORITIES: Final = 10  #: 0 (low) to 9; the three named ones are low 0, normal 1, high 2
BATCH_MAX: Final = 10_000  #: jobs in one batch request

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Moment = Annotated[datetime, Meta(tz=True)]
SECONDS_MAX: Final = 31_536_000.0  #: a year; the longest delay or time limit
Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
EMPTY_OBJECT: Final = Raw(b"{}")


class Strategy(StrEnum):
    """How the delay before an attempt grows: the same, by one more delay each time, or doubling."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"

    @classmethod
    def _missing_(cls, value: object) -> "Strategy | None":
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


class Rules(Struct, kw_only=True):
    """Retry and time rules. None leaves the answer to the next in line: job, task, queue, DEFAULT_RULES.

    By keyword only, so that they come last in what inherits them, also on the wire.
    """

    max_retries: Annotated[int, Meta(ge=0, le=1000)] | None = None
    retry_strategy: Strategy | None = None
    retry_delay: Seconds | None = None
    max_retry_delay: Seconds | None = None
    retry_jitter: bool | None = None  # full jitter: a random delay between 0 and the computed one
    timeout: Annotated[float, Meta(gt=0, le=SECONDS_MAX)] | None = None  # seconds one attempt may run


DEFAULT_RULES: Final = Rules(
    max_retries=3,
    retry_strategy=Strategy.EXPONENTIAL,
    retry_delay=5.0,
    max_retry_delay=3600.0,
    retry_jitter=False,
    timeout=300.0,
)
GRACE_S: Final = 5.0  #: seconds between a task's time limit (or cancellation) and the kill of a process that ignores it


class JobBody(Rules):
    """What a client may say of a job. Two enqueues of one id must agree on it."""

    id: Annotated[str, Meta(pattern=NAME_OR_NOTHING)] = ""  # empty: made by GoTask
    type: Name = ""
    queue: Name = "default"
    payload: Raw = EMPTY_OBJECT
    priority: Annotated[int, Meta(ge=0, le=PRIORITIES - 1)] = 1
    scheduled_at: Moment | None = None
    expires_at: Moment | None = None
    unique_key: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    metadata: dict[str, str | int | float | bool | None] | None = None


class NewJob(JobBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A job as it is asked for. `delay` (seconds) is judged by the store's clock, unlike `scheduled_at`."""

    type: Name
    delay: Seconds | None = None


class Attempt(Struct, omit_defaults=True):
    """One run of a job that has ended, or the one under way."""

    worker: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str = ""  # the event that ended it, or "lapse"
    error: str | None = None


class Job(JobBody, gc=False):
    """A stored unit of work. `due_at` means what its state says (see gotask.states.MEANING)."""

    status: State = State.PENDING
    retry_count: int = 0  # attempts in which the task failed
    crashes: int = 0  # attempts in which its worker died
    lease: int = 0  # number of the latest lease; the fence
    worker_id: str | None = None
    due_at: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    progress: float = 0.0  # per cent
    progress_note: str | None = None
    result: Raw | None = None
    error: str | None = None
    reason: str | None = None  # why it is where it is, in a word or a sentence: poison, unknown type ...
    origin_queue: str | None = None  # where a dead letter came from
    cancel_requested: bool = False
    attempts: list[Attempt] | None = None  # those that ended other than in the current one, oldest first


class Enqueued(Struct):
    """The answer to one enqueue. A duplicate is the job that stands; a conflict is one whose body differs."""

    outcome: Literal["created", "duplicate", "conflict"]
    job: Job


class Settlement(Struct, gc=False):
    """How one lease ends, as a value. `due_in` (seconds) is when the job wakes, or how long it is remembered."""

    id: str
    lease: int
    event: Event
    due_in: float | None = None
    result: bytes | None = None
    error: str | None = None
    reason: str | None = None
    crashed: bool = False  # its worker died: one more of `crashes`
    queue: str | None = None  # the dead-letter queue it moves to


class Beat(Struct, gc=False):
    """A sign of life for one lease, with the task's progress if it said any."""

    id: str
    lease: int
    progress: float | None = None
    note: str | None = None


class Held(StrEnum):
    """The answer to a beat."""

    HELD = "held"
    LOST = "lost"
    CANCEL = "cancel"  # held, but somebody asked for it to stop


class Became(StrEnum):
    """What a store knows of a run whose task ended its job in a transaction of its own."""

    DONE = "done"  # it committed
    UNDONE = "undone"  # it did not, and the run still holds the job
    OPEN = "open"  # it has not ended
    LOST = "lost"  # the run does not hold the job, and did not end it


class Tick(Struct):
    """What one call of `tick` did. `next_in` is seconds until something is due; 0 if more is due already; None if never."""

    promoted: int = 0
    lapsed: int = 0
    expired: int = 0
    pruned: int = 0
    next_in: float | None = None


class Filter(Struct, forbid_unknown_fields=True):
    """Which jobs to list, newest first. `cursor` is the `next_cursor` of the page before."""

    queue: Name | None = None
    status: State | None = None
    type: Name | None = None
    worker_id: str | None = None
    unique_key: str | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    offset: Annotated[int, Meta(ge=0, le=100_000)] = 0
    cursor: str | None = None


class Page(Struct):
    """A list of jobs, and where it goes on."""

    jobs: list[Job]
    next_cursor: str | None = None


class Queue(Rules, forbid_unknown_fields=True):
    """The settings of a queue. One that nobody made has the defaults."""

    KIND: ClassVar[str] = "queue"
    name: Name
    version: int = 0
    max_workers: Annotated[int, Meta(ge=0)] = 0  # jobs running at once, over all nodes; 0 is no limit
    priority: Annotated[int, Meta(ge=0, le=PRIORITIES - 1)] = 1  # served strictly before queues of a lower one
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1  # share among queues of one priority
    rate_limit: Annotated[float, Meta(ge=0)] = 0.0  # starts per second, over all nodes; 0 is no limit
    dead_letter_queue: Name | None = None
    paused: bool = False


class Worker(Struct, kw_only=True):
    """One node, as it last described itself."""

    KIND: ClassVar[str] = "worker"
    name: Name
    version: int = 0
    host: str = ""
    boot_id: str = ""
    pid: int = 0
    queues: list[str] = []
    types: list[str] = []
    slots: int = 0
    processes: int = 0
    started_at: datetime | None = None
    seen_at: datetime | None = None
    lock: str = ""  # path of the file its processes hold locked while any of them lives


#: A small document that a store keeps under (KIND, name); its `version` rises by one with each put.
Record = Queue | Worker


class QueueStats(Struct):
    """How many jobs of a queue are in each state, and what the queue's settings make of them."""

    queue_name: str
    scheduled_count: int = 0
    pending_count: int = 0
    running_count: int = 0
    retrying_count: int = 0
    success_count: int = 0
    failed_count: int = 0
    cancelled_count: int = 0
    expired_count: int = 0
    paused: bool = False
