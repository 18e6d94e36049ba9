"""What became of transactions in which tasks completed their own jobs: read from the jobs, and never waited for."""

from collections.abc import Sequence

from gotask.backends.postgres import rows
from gotask.backends.postgres.moving import Heard
from gotask.backends.postgres.server import Server
from gotask.model import Became
from gotask.states import RULES, Event


def look(server: Server, runs: Sequence[tuple[str, int]]) -> tuple[list[Became], Heard]:
    """Of each run, by its job's id and its lease; and who must hear of those that are done, since no commit told them.

    A job that is still running has been completed by nobody if its row can be locked, and by somebody who has not ended yet if
    it cannot. The locks come first: what ends between them and the look is open, and looked at again.
    """
    ids = rows.texts(sorted({id for id, _ in runs}))
    calls = (("lock free live jobs", ids), ("completing jobs", ids, ids))
    free, found = server.transact(lambda txn: txn.ask(*calls, last=True))
    unlocked = {(id, lease) for id, lease in free}
    known: dict[tuple[str, int], Became] = {}
    heard = Heard()
    for id, lease, status, queue in found:
        run = (id, lease)
        if status == RULES[Event.ACK].to:
            known[run] = Became.DONE
            heard.ended.append(id)
            heard.queues |= {queue} - {None}
        elif status in RULES[Event.ACK].sources:
            known[run] = Became.UNDONE if run in unlocked else Became.OPEN
    return [known.get(run, Became.LOST) for run in runs], heard
