"""A batch of jobs, done in one transaction; and if others hold some of them, all but those in a second one.

Somebody may hold a job for as long as he likes: a person in psql, or a task that completes its job in a transaction of its own
and does not end that. A job is waited for as long as a call may take, or for a moment only, and others of its batch must not
wait for ever with it.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from gotask.backends.postgres import rows
from gotask.backends.postgres.address import Address
from gotask.backends.postgres.server import Server, Txn
from gotask.errors import BackendDown

B = TypeVar("B")
H = TypeVar("H")

MOMENT_S: Final = 0.25  #: seconds to wait for a lock, of whoever is not to wait, or has waited already
#: SQLSTATE of a lock, or of a statement as a whole, that took too long
_LATE: Final = ("55P03", "57014")


def do(
    server: Server,
    batch: Sequence[B],
    name: Callable[[B], str],
    work: Callable[[Txn, Sequence[B]], tuple[list[bool], H]],
    kind: str = "live",
) -> tuple[Sequence[bool | None], H]:
    """What `work` answers for a batch, `name` giving the job of each; None for a job left as it was, since others hold it.

    `kind` is what it is about, live jobs or finished ones.
    """
    try:
        return server.transact(lambda txn: work(txn, batch))
    except BackendDown as error:
        if getattr(error.__cause__, "sqlstate", None) not in _LATE:
            raise
    return server.transact(lambda txn: _around(txn, batch, name, work, kind))


def _around(
    txn: Txn,
    batch: Sequence[B],
    name: Callable[[B], str],
    work: Callable[[Txn, Sequence[B]], tuple[list[bool], H]],
    kind: str,
) -> tuple[Sequence[bool | None], H]:
    """Do what can be done of a batch without waiting for others. What is there after all free ones were locked, is held."""
    ids = rows.texts(sorted({name(one) for one in batch}))
    txn.limit(MOMENT_S)
    free, there = ({id for id, *_ in found} for found in txn.ask((f"lock free {kind} jobs", ids), (f"{kind} jobs", ids)))
    places = [n for n, one in enumerate(batch) if name(one) in free]
    answered, heard = work(txn, [batch[n] for n in places])
    answers: list[bool | None] = [None if name(one) in there else False for one in batch]
    for n, answer in zip(places, answered, strict=True):
        answers[n] = answer
    return answers, heard


def settled(address: Address, ids: Sequence[str], answers: Sequence[bool | None]) -> list[bool]:
    """The answers, once all that is done was told. Raises BackendDown if others hold some of the jobs."""
    held = [id for id, answer in zip(ids, answers, strict=True) if answer is None]
    if held:
        others = "; all others of the batch are done" if len(ids) > len(held) else ""
        raise BackendDown(
            f"PostgreSQL at {address.shown} did not let go of {min(held)!r}, which another transaction has locked, within "
            f"{address.timeout:g} s{others}: end that transaction, or try again."
        )
    return [bool(answer) for answer in answers]
