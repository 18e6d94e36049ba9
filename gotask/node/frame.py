"""What goes through the segment: the frame of a job on its way to a worker, and the kinds of report that come back."""

import os
import signal
from typing import Final

import msgspec

from gotask._core.ring import INNOCENT, OVERDUE, SUSPECT_ALONE, Loss
from gotask.model import Job
from gotask.policy import Outcome

DONE: Final = 1  #: the task returned; the body is its result as JSON
ENDED: Final = 2  #: it ended in any other way; the body is an Outcome
PROGRESS: Final = 3  #: it goes on; the body is a Progress
#: the task ends its job in a transaction of its own. Not final: it is about to. Final: it ended, and the body is the Outcome
#: that counts if that transaction did not commit
COMPLETION: Final = 4

Metadata = dict[str, str | int | float | bool | None]


class Frame(msgspec.Struct, array_like=True, gc=False):
    """All of a job that its run needs; the order of fields is the format, within one node's lifetime."""

    id: str
    type: str
    queue: str
    payload: bytes
    lease: int
    retry_count: int
    crashes: int
    timeout: float
    metadata: Metadata | None


class Progress(msgspec.Struct, array_like=True, gc=False):
    percent: float
    note: str


_encode = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Frame).decode


def encode(job: Job, timeout: float) -> bytes:
    """The frame of `job`; `timeout` is the one in force for it, in seconds."""
    return _encode(
        (
            job.id,
            job.type,
            job.queue,
            bytes(job.payload),
            job.lease,
            job.retry_count,
            job.crashes,
            timeout,
            job.metadata,
        )
    )


_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


def write_outcome(outcome: Outcome) -> bytes:
    return _encode_outcome(outcome)


def read_outcome(kind: int, body: bytes) -> Outcome:
    """What a final report other than DONE or COMPLETION says. A torn one did run to its end, but nobody can say to which."""
    if kind == ENDED:
        try:
            return _decode_outcome(body)
        except msgspec.MsgspecError as error:
            return Outcome("failed", f"its worker reported nonsense ({error})", retryable=False)
    return Outcome("released", "its result was cut off when the dispatcher was restarted")


def outcome_of_loss(loss: Loss, cancelled: bool) -> Outcome:
    """What the end of its worker means for a job that was running there."""
    cause = death(loss.code)
    if loss.verdict == INNOCENT:
        return Outcome("released", f"its worker was stopped ({cause})")
    if loss.verdict == OVERDUE:
        if cancelled:
            return Outcome("cancelled", "it went on past its cancellation and the grace, so its worker was killed")
        text = (
            "TimeLimit: it went on past its time limit and the grace (blocked in a call, or ignoring it); its worker was killed"
        )
        return Outcome("timeout", text)
    return Outcome("crashed", f"its worker died while running it: {cause}", alone=loss.verdict == SUSPECT_ALONE)


def death(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = {one.value: one.name for one in signal.Signals}
        return f"killed by {known.get(number, f'signal {number}')}"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"
