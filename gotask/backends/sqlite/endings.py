"""Ending leases. A plain ack of a job that this process leased is settled with its whole batch; the rest one by one."""

from collections.abc import Sequence

from gotask.backends import moves
from gotask.backends.fields import check_texts
from gotask.backends.sqlite import sql
from gotask.backends.sqlite.leases import Memo, settings, some
from gotask.backends.sqlite.link import Txn
from gotask.backends.sqlite.moves import standing, write
from gotask.model import Settlement
from gotask.states import KEEP_S, RULES, Event

_ACKED = RULES[Event.ACK].to
_RUNNING = RULES[Event.LEASE].to
_KEEP = KEEP_S[_ACKED]


class Stale(Exception):
    """The memo was wrong about a job; the transaction must be undone and done again without it."""


def settle(txn: Txn, settlements: Sequence[Settlement], memo: Memo) -> list[bool]:
    """End leases; the answer says of each whether it was still held. Raises Stale."""
    groups: dict[tuple[int, float | None, bytes | None], list[int]] = {}
    ended: dict[str, int] = {}
    ids = txn.ended
    answers = [True] * len(settlements)
    singly = []
    plain, forget = Event.ACK, memo.pop
    for at, s in enumerate(settlements):
        found = forget(s.id, None)
        if found is None or s.event is not plain or found[2] != s.lease or s.error or s.reason or s.crashed:
            singly.append(at)
            continue
        seq, queue, _ = found
        key = (s.lease, s.due_in, s.result)
        if key in groups:
            groups[key].append(seq)
        else:
            groups[key] = [seq]
        ended[queue] = ended.get(queue, 0) + 1
        ids.append(s.id)
    if groups:
        _ack(txn, groups)
    for queue, n in ended.items():
        txn.count(queue, _RUNNING, -n)
        txn.count(queue, _ACKED, n)
    if singly:
        for at, held in zip(singly, _settle_singly(txn, [settlements[at] for at in singly], ended), strict=True):
            answers[at] = held
    _free_places(txn, ended)
    return answers


def _ack(txn: Txn, groups: dict[tuple[int, float | None, bytes | None], list[int]]) -> None:
    before, asked, lonely = txn.db.total_changes(), 0, []
    for (lease, due_in, result), seqs in groups.items():
        values = (txn.now, txn.now + (_KEEP if due_in is None else due_in), result, lease)
        asked += len(seqs)
        if len(seqs) == 1:
            lonely.append((*values, seqs[0]))
        else:
            statement, where = some(seqs, sql.ACK_RANGE, sql.ACK_SOME)
            txn.db.execute(statement, (*values, *where))
    if lonely:
        txn.db.executemany(sql.ACK_ONE, lonely)
    if txn.db.total_changes() - before != asked:
        raise Stale


def _settle_singly(txn: Txn, settlements: list[Settlement], ended: dict[str, int]) -> list[bool]:
    check_texts(settlements, "error", "reason")
    found = standing(txn.db, (s.id for s in settlements))
    moved, answers = [], []
    for s in settlements:
        at = found.get(s.id)
        held = at is not None and at.job.lease == s.lease and not at.moved and at.found in RULES[s.event].sources
        held = held and at is not None and at.found is _RUNNING  # a CANCEL of what waits is no ending
        answers.append(held)
        if held and at is not None:
            moves.settle(at.job, s, txn.now)
            at.moved = True
            moved.append(at)
            ended[at.queue] = ended.get(at.queue, 0) + 1
    if moved:
        write(txn, moved)
    return answers


def _free_places(txn: Txn, ended: dict[str, int]) -> None:
    """A place of a queue with a limit is free again: other nodes may be waiting for it."""
    for queue in ended:
        record = None if txn.work else settings(txn.db, queue)
        if record is not None and record.max_workers:
            txn.work = True
