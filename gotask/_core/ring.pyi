"""What Python may believe about the segment.

A *frame* is the bytes of one job on their way to a worker; it lies in a *slot* until it is settled. A *ticket*
names one stay of one frame in one slot (slot index and generation), so that a late hand never touches its successor.
A *report* is what a worker says about a ticket. An *owner* names one life of one worker (index and generation).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

LAYOUT: Final[int]  # version of the memory layout; a segment of another one is refused
RINGS: Final[int]  # how many ready rings a segment has: priorities 0..9, and ALONE
ALONE: Final[int]  # the ring whose frames are claimed only by a worker that holds nothing else

# what became of a frame whose worker died, judged by `recover`
SUSPECT: Final[int]  # it ran beside others when the worker died
SUSPECT_ALONE: Final[int]  # it was the only one
OVERDUE: Final[int]  # past its limit and grace: what the worker was killed for
INNOCENT: Final[int]  # a neighbour of an overdue one, or of a worker stopped on purpose

# kinds of report that the core itself knows; every other value below 128 is the caller's own
TORN: Final[int]  # the pieces of a large report did not all arrive (their reader died between); the frame did end

class Frame(NamedTuple):
    """One frame to put; a plain tuple will do. Times are seconds; `limit` 0 means none.

    `expires` is CLOCK_BOOTTIME, nobody claims past it; `math.inf` means never.
    """

    body: bytes
    ring: int
    limit: float
    grace: float
    expires: float

class Claim(NamedTuple):
    ticket: int
    body: bytes

class Report(NamedTuple):
    """`seconds` is how long the frame had been running when this was written. `final` reports end the ticket."""

    ticket: int
    kind: int
    final: bool
    seconds: float
    body: bytes

class Loss(NamedTuple):
    """A frame whose worker is dead. `code` is the wait status that `recover` was given."""

    ticket: int
    verdict: int
    code: int

class Stay(NamedTuple):
    """A frame found by `adopt`. `claimed` is False while it is still READY."""

    ticket: int
    claimed: bool
    body: bytes

class Segment:
    """One anonymous, sealed memfd, mapped before the first fork and inherited by every child.

    Raises MemoryError with a sentence when the system or the cgroup has no room for it, before anything is mapped.
    """

    def __init__(
        self,
        *,
        slots: int,
        workers: int,
        slot_bytes: int = 512,
        report_bytes: int = 262_144,
        blocks: int = 128,
        block_bytes: int = 65_536,
    ) -> None: ...
    @property
    def slots(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def size(self) -> int: ...
    def fileno(self) -> int: ...

    # the dispatcher: the only one to call these, from one thread
    def put_many(self, frames: Sequence[tuple[bytes, int, float, float, float]]) -> list[int]:
        """Tickets, in order, of the frames that found room; shorter than `frames` when slots, rings or blocks ran out.

        ValueError, and nothing put, when one of them could never be: no such ring, or larger than the segment can hold.
        """
    def recall(self, older_than: float) -> list[int]:
        """Take back what nobody has claimed for `older_than` seconds: those tickets are over, their slots free."""
    def drain(self, limit: int) -> list[Report]:
        """Copy out reports not drained before. They stay in shared memory until `forget`."""
    def free_many(self, tickets: Sequence[int]) -> None:
        """End these tickets: their slots (and blocks) are free again. Stale ones are ignored."""
    def forget(self) -> None:
        """Let workers overwrite all that `drain` has returned; call it once the reports are settled and freed."""
    def losses(self) -> list[Loss]:
        """Frames whose worker died. They stay listed until freed."""
    def adopt(self) -> list[Stay]:
        """Take over from a dead dispatcher: hint READY slots that no ring names, rebuild free lists, list all frames.

        A successor calls it before anything else; the first dispatcher may.
        """
    def cancel(self, ticket: int, grace: float) -> bool:
        """Ask the worker that holds it to stop the frame; True if someone holds it, so that its end will be heard of.

        False: it was still READY and is recalled now, or its ticket was over before.
        """
    def room(self) -> int:
        """Free slots."""
    def wait_reports(self, seen: int, timeout: float) -> int:
        """Sleep until the reports count differs from `seen`, something is undrained, or the timeout; the count now.

        GIL released; returns early on a signal. The count stands still while nobody sleeps.
        """
    def reports_seen(self) -> int: ...
    def ring_reports(self) -> None:
        """Wake `wait_reports` from any process or thread."""

    # a worker
    def claim(self, owner: int, idle: bool, timeout: float) -> Claim | None:
        """Take the most urgent frame, sleeping up to `timeout` seconds for one.

        `idle` says that this worker holds nothing else, so that it may take from ALONE. None on a time-out, on a
        signal, when the worker must take no more (`stopping`: at once) and while it holds a frame from ALONE (after the
        time-out). ValueError when `owner` is not the present life of its worker. A frame that was scribbled on while it
        waited has an empty body.
        """
    def report(self, owner: int, ticket: int, kind: int, body: bytes, final: bool) -> bool:
        """Publish; sleeps (GIL released) while the worker's report ring is full.

        False when the ticket is no longer its own. `kind` is 0 to 127. What is too long for the ring goes in pieces; an
        exception from a signal handler may leave some of them behind, and the next report on the ticket replaces them.
        """
    def cancelled(self, ticket: int) -> bool: ...
    def overdue(self, owner: int) -> list[int]:
        """Tickets held by this owner whose limit has passed or whose cancellation was asked."""
    def stopping(self, owner: int) -> bool: ...
    def waiting(self, ring: int) -> int:
        """How many hints a ready ring has: at least as many as frames that wait there."""
    def is_first(self, owner: int) -> bool:
        """Whether no worker of a lower index takes frames; the first one makes room for what must run alone."""
    def wait_attention(self, owner: int, seen: int, timeout: float) -> int:
        """Sleep until somebody asks something of this worker (cancel, stop); the count now. GIL released."""
    def attention_seen(self, owner: int) -> int: ...
    def keep_from_children(self) -> None:
        """MADV_DONTFORK, for a worker after its own fork: what a task forks can neither write here nor use this."""

    # the arbiter
    def enlist(self, index: int) -> int:
        """A new owner for worker `index`; call it before the fork, when the last life of that index was recovered.

        RuntimeError when it was not.
        """
    def stop(self, owner: int) -> None:
        """This worker takes no more frames; what it runs may end."""
    def stuck(self, slack: float) -> list[int]:
        """Owners that hold a frame past its limit (or cancellation) and grace by more than `slack` seconds.

        Also those whose report ring held nonsense: what else they said is lost, so only their death frees the rest.
        """
    def held(self, owner: int) -> int:
        """How many frames it holds that have not ended."""
    def recover(self, owner: int, killed: bool, code: int) -> int:
        """After the owner was reaped: what it published stands, all else it held becomes a Loss. How many did.

        `killed`: stopped on purpose, so that only overdue frames are to blame. Repeatable.
        """

    # everybody
    def counters(self, index: int) -> memoryview:
        """u64 cells of worker `index`: claimed, done, busy nanoseconds, then 64 buckets of run time. Read-only.

        Bucket 0 holds what took less than 1024 ns; bucket i from 2**(9 + (i + 1) / 2) ns on for odd i, from
        1.5 * 2**(9 + i / 2) ns on for even i; the last one all above.
        """
    def check(self) -> dict[str, int]:
        """How many slots are free, ready, taken and lost, for tests and `gotask doctor`; they add up to `slots`.

        "taken" counts those whose owner died after its final report, too.
        """
    def close(self) -> None:
        """Unmap here and now; other processes keep theirs. BufferError while a view of counters is open.

        An object that merely goes away in a forked child unmaps nothing.
        """

def checksum(body: bytes) -> int:
    """64 bits that differ when bytes were scribbled on; no defence against a forger."""

def die_with_parent(parent: int) -> None:
    """PR_SET_PDEATHSIG to SIGKILL; raises ProcessLookupError when `parent` is already gone."""
