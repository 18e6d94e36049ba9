"""The Backend protocol: what a store of jobs must do, and how a URL becomes one.

Every call is a batch and answers item by item. Every transition is one guarded atomic write (id, state and lease) whose
answer says whether it held. Due times are judged by the store's clock. The suite in tests/conformance is the other half of
this definition: `pytest tests/conformance --backend=package.module:open` runs it on a backend of your own.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Protocol, TypeVar

from gotask.errors import InvalidInput, NotConfigured
from gotask.model import Beat, Enqueued, Filter, Held, Job, NewJob, Page, Queue, Record, Settlement, Tick, Worker
from gotask.states import Event, State

R = TypeVar("R", Queue, Worker)


class Watch(Protocol):
    """A doorbell that has been listened to since `Backend.watch` returned it: nothing rung after that is missed."""

    def wait(self, timeout: float) -> set[str]:
        """The topics that may have rung since the last call; empty after `timeout` seconds. Early at times, never late."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """A store of jobs and records. All methods raise BackendDown when the store does not answer in time.

    Instances may be used from several threads, and must not be carried across a fork.
    """

    @property
    def promise(self) -> str:
        """One sentence: what an answered enqueue survives here."""
        ...

    # the hot path
    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Accept jobs, durably before the answer.

        The same id, or the unique key of a live job, answers `duplicate` with the job that stands, or `conflict` with it
        when the id is known with another body. Empty ids are made here. Queues need not exist.
        """
        ...

    def lease(self, wants: Mapping[str, int], owner: str, lease_s: float) -> list[Job]:
        """Up to wants[queue] jobs of each queue: RUNNING, with a new lease number, due to lapse in `lease_s` seconds.

        The queue's record is judged here, atomically: paused, max_workers, rate_limit. Higher priority first, then
        first come first served; one in every 16 is the queue's oldest.
        """
        ...

    def settle_many(self, settlements: Sequence[Settlement]) -> Sequence[bool | None]:
        """End leases. False: fenced off (another lease, another state, or gone), and nothing was changed.

        None: not yet, since another transaction holds the job; nothing was changed, so ask again. Only a store in which others
        can lock a job answers this, and only after it has waited for as long as a call may take. Such a store has `settle_free`
        too, which is the same and waits for a moment only.
        """
        ...

    def extend_many(self, beats: Sequence[Beat], lease_s: float) -> list[Held]:
        """Push the ends of leases out to `lease_s` seconds from now, and note progress."""
        ...

    def tick(self, limit: int = 1000) -> Tick:
        """Do what is due, at most `limit` jobs of it: promote, lapse, expire, prune."""
        ...

    def watch(self, topics: Sequence[str]) -> Watch:
        """Listen to topics: `queue:NAME` (work came), `job:ID` (it ended), `node:OWNER` (somebody asks to stop a job)."""
        ...

    # by hand
    def move_many(self, ids: Sequence[str], event: Event, reason: str | None = None) -> list[bool]:
        """CANCEL or REVIVE jobs. False: unknown, or not possible in its state.

        Cancelling a RUNNING job only marks it and rings its node; the node, or the lapse, ends it.
        """
        ...

    def drop_many(self, ids: Sequence[str]) -> list[bool]:
        """Delete jobs, unless they are RUNNING or unknown."""
        ...

    def get_many(self, ids: Sequence[str]) -> list[Job | None]: ...

    def find(self, filter: Filter) -> Page:
        """One page of jobs, newest first."""
        ...

    def counts(self) -> dict[tuple[str, State], int]:
        """How many jobs each queue has in each state."""
        ...

    # records
    def put(self, record: Record, version: int | None = None) -> bool:
        """Store a record. With `version`, only if the stored one has it (0: there is none); False if not."""
        ...

    def get(self, kind: type[R], name: str) -> R | None: ...

    def all(self, kind: type[R]) -> list[R]:
        """All records of a kind, by name."""
        ...

    def drop(self, kind: type[R], name: str, version: int | None = None) -> bool: ...

    def close(self) -> None: ...


#: URL scheme -> "module:function" that opens it with the whole URL, and for tests with `clock=`, a function that gives the
#: store's time in seconds since the epoch. Installed packages add theirs under this entry point.
SCHEMES: Final[dict[str, str]] = {
    "memory": "gotask.backends.memory:open",
    "sqlite": "gotask.backends.sqlite:open",
    **dict.fromkeys(
        ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
        "gotask.backends.redis:open",
    ),
    **dict.fromkeys(("postgres", "postgresql"), "gotask.backends.postgres:open"),
}
#: library that a storage of ours needs, and the installation does not bring by itself -> the extra that does
EXTRAS: Final = {"redis": "gotask[redis]", "hiredis": "gotask[redis]", "psycopg": "gotask[postgres]"}
ENTRY_POINT: Final = "gotask.backends"


def open(url: str) -> Backend:
    """The backend that `url` names; a bare scheme such as `sqlite` means its default place.

    Raises NotConfigured for a scheme that is not installed, or whose library is not.
    """
    scheme = url.partition(":")[0].lower()
    target = SCHEMES.get(scheme)
    if target is None:
        found = {point.name: point.value for point in entry_points(group=ENTRY_POINT)}
        target = found.get(scheme)
    if target is None:
        known = ", ".join(sorted(SCHEMES))
        raise NotConfigured(f"There is no storage called {scheme!r}; this installation has: {known}.")
    module, _, function = target.partition(":")
    try:
        opener: Callable[[str], Backend] = getattr(import_module(module), function)
    except ModuleNotFoundError as e:
        extra = EXTRAS.get(e.name or "")
        if extra is None:
            raise
        raise NotConfigured(f"The storage {scheme} needs {e.name}, which is not installed: pip install '{extra}'.") from e
    return opener(url)


def is_kept_in(url: str, package: str) -> bool:
    """Whether a URL names a storage of this package's own, such as "redis" or "postgres"; nothing is loaded."""
    return SCHEMES.get(url.partition(":")[0], "").startswith(f"gotask.backends.{package}:")


def joined(backend: Backend, connection: Any) -> Any:
    """What `backend` can do in the transaction of a connection of the user's. Raises InvalidInput if it can do nothing."""
    join = getattr(backend, "joined", None)
    if join is None:
        raise InvalidInput("connection: this storage cannot take part in your transaction; only postgres can.")
    return join(connection)
