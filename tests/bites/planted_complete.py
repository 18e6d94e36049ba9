"""The bugs of jobs that complete themselves, and of what is told of a PostgreSQL, which their own tests must notice."""

from tests.bites.planted import Bite

STORE = "tests/conformance/test_postgres_complete.py"
NODE = "tests/crash/test_completing.py"

BITES = [
    Bite(
        "completing: an own transaction that did not commit is taken for done",
        "gotask/backends/postgres/commits.py",
        "known[run] = Became.UNDONE if run in unlocked else Became.OPEN",
        "known[run] = Became.DONE if run in unlocked else Became.OPEN",
        f"{NODE} -k did_not_commit",
    ),
    Bite(
        "completing: the node settles what its task has completed, without a look at the store",
        "gotask/node/completions.py",
        "            self._end(ticket, frame.read_outcome(frame.ENDED, body))\n",
        "            self._ledger.conclude(ticket, frame.read_outcome(frame.ENDED, body))\n",
        f"{NODE} -k did_not_commit",
    ),
    Bite(
        "completing: an open transaction is settled, and so waited for",
        "gotask/backends/postgres/commits.py",
        "known[run] = Became.UNDONE if run in unlocked else Became.OPEN",
        "known[run] = Became.UNDONE",
        f"{NODE} {STORE} -k open_transaction",
    ),
    Bite(
        "completing: a run whose lease is lost may commit if it swallows the error",
        "gotask/backends/postgres/joined.py",
        "                self._cursor.execute(_SPOIL, prepare=False)\n",
        "                pass\n",
        f"{STORE} -k spoils",
    ),
    Bite(
        "completing: a lost lease goes unnoticed",
        "gotask/backends/postgres/joined.py",
        "            if self._again_if_moved(*ack([ending], None)):\n                return\n",
        "            self._again_if_moved(*ack([ending], None))\n            return\n",
        f"{STORE} -k spoils",
    ),
    Bite(
        "completing: of a job whose worker is killed after the commit, the node says that it was taken away",
        "gotask/node/completions.py",
        "                self._begun.add(ticket)\n",
        "                pass\n",
        f"{NODE} -k killed_around",
    ),
    Bite(
        "completing: what was left open takes a place of the node",
        "gotask/node/leaser.py",
        "        in_hand = len(self._ledger.jobs) - len(self._ledger.lingering)\n",
        "        in_hand = len(self._ledger.jobs)\n",
        f"{NODE} -k stops_nobody_else",
    ),
    Bite(
        "completing: a dispatcher takes what it was asking for with it",
        "gotask/node/dispatcher.py",
        "        self._completions.adopt()\n",
        "",
        f"{NODE} -k next_dispatcher",
    ),
    Bite(
        "completing: what a coroutine held as it raised is kept",
        "gotask/node/run.py",
        "        clear_frames(error.__traceback__)",
        "        pass",
        f"{NODE} -k coroutine_left_open",
    ),
    Bite(
        "completing: nobody who waits is told",
        "gotask/backends/postgres/commits.py",
        "            heard.ended.append(id)\n",
        "            pass\n",
        f"{STORE} -k done_when",
    ),
    Bite(
        "outlook: a long transaction is told of at each look",
        "gotask/node/outlook.py",
        "            if about not in self._told:\n",
        "            if about:\n",
        "tests/conformance/test_postgres_pins.py -k open_for_long",
    ),
    Bite(
        "doctor: steps that a store lacks are not told",
        "gotask/backends/postgres/facts.py",
        "if name not in have]",
        "if name not in have and not have]",
        "tests/e2e/test_doctor_postgres.py -k poor",
    ),
]
