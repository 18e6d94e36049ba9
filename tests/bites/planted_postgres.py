"""The bugs of the PostgreSQL storage that its tests under kills, losses and crowds must notice."""

from tests.bites.planted import Bite

FOLDER = "gotask/backends/postgres"
INTAKE = f"{FOLDER}/migrations/002-pre-intake.sql"
LEASES = f"{FOLDER}/migrations/003-pre-leases.sql"
ENDINGS = f"{FOLDER}/migrations/005-pre-endings.sql"
QUERIES = f"{FOLDER}/queries.sql"

BITES = [
    Bite(
        "postgres: an enqueue is not waited for on the disk",
        QUERIES,
        "SELECT id, status, due_at, created_at FROM gotask.enqueue_1(",
        "SELECT id, status, due_at, created_at FROM {lazy}, gotask.enqueue_1(",
        "tests/chaos/test_postgres_kills.py -k disk",
    ),
    Bite(
        "postgres: an ack is not waited for on the disk",
        QUERIES,
        "SELECT id, lease, queue, limited FROM gotask.ack_1(",
        "SELECT id, lease, queue, limited FROM {lazy}, gotask.ack_1(",
        "tests/chaos/test_postgres_kills.py -k disk",
    ),
    Bite(
        "postgres: a cancel is not waited for on the disk",
        QUERIES,
        "SELECT gotask.write_1(%s, %s, %s, %s, %s, %s)",
        "SELECT gotask.write_1(%s, %s, %s, %s, %s, %s), {lazy}",
        "tests/chaos/test_postgres_kills.py -k disk",
    ),
    Bite(
        "postgres: numbers of leases are counted, and not above the clock",
        LEASES,
        "IF number = 0 THEN number := extract(epoch FROM clock_timestamp()) * 1000000; END IF;",
        "",
        "tests/chaos/test_postgres_kills.py -k never_comes_back",
    ),
    Bite(
        "postgres: an ack under an old lease is taken",
        ENDINGS,
        "jobs.lease = a.lease AND ",
        "",
        "tests/chaos/test_postgres_kills.py -k never_comes_back",
    ),
    Bite(
        "postgres: an id whose job has ended is new",
        INTAKE,
        "    IF named <> '{}' THEN\n",
        "    IF false THEN\n",
        "tests/chaos/test_postgres_unheard.py -k meanwhile",
    ),
    Bite(
        "postgres: what others are in the way of is not tried again",
        f"{FOLDER}/server.py",
        "if tried + 1 == TRIES:",
        "if True:",
        "tests/chaos/test_postgres_storm.py -k circle",
    ),
    Bite(
        "postgres: a mixed batch is locked in two orders",
        f"{FOLDER}/moving.py",
        "rows.texts(sorted({s.id for s in settlements}))",
        "rows.texts(sorted({settlements[n].id for n in singly}))",
        "tests/chaos/test_postgres_storm.py -k without_keys",
    ),
    Bite(
        "postgres: a call waits for its answer for ever",
        f"{FOLDER}/link.py",
        "            link.deadline = deadline + GRACE_S\n",
        "            link.deadline = inf\n",
        "tests/chaos/test_stalls.py -k postgres-silent-old",
    ),
    Bite(
        "postgres: a connection that the server has ended is used",
        f"{FOLDER}/link.py",
        "if not link.closed and link.is_quiet:",
        "if not link.closed:",
        "tests/conformance/test_postgres.py -k unnoticed",
    ),
    Bite(
        "postgres: what the driver says of a cut comes through as it is",
        f"{FOLDER}/server.py",
        "        except (psycopg.Error, OSError) as error:",
        "        except (psycopg.DataError, OSError) as error:",
        "tests/chaos/test_postgres_kills.py -k waits_for_somebody",
    ),
    Bite(
        "postgres: after an outage an idle node stays deaf",
        f"{FOLDER}/ear.py",
        "                doubted = True\n",
        "",
        "tests/chaos/test_postgres_unheard.py -k cannot_hear",
    ),
    Bite(
        "postgres: whoever hears nothing and waits in short naps never looks",
        f"{FOLDER}/ear.py",
        "self._waited_s += 0.0 if pace == inf else monotonic() - now",
        "self._waited_s = 0.0 if pace == inf else monotonic() - now",
        "tests/conformance/test_postgres.py -k naps",
    ),
    Bite(
        "postgres: a forked child keeps its parent's connections",
        f"{FOLDER}/link.py",
        "        links.abandon()\n",
        "        pass\n",
        "tests/chaos/test_postgres_kills.py -k forked",
    ),
    Bite(
        "postgres: a full disk is not told from silence",
        f"{FOLDER}/sentences.py",
        '    if state in ("53100", "53200", "53000"):\n',
        '    if state in ("53200", "53000"):\n',
        "tests/chaos/test_postgres_full.py -k full_disk",
    ),
    Bite(
        "postgres: a dispatcher waits for jobs that others hold",
        LEASES,
        "ORDER BY place LIMIT n - aged FOR UPDATE SKIP LOCKED",
        "ORDER BY place LIMIT n - aged FOR UPDATE",
        "tests/chaos/test_postgres_storm.py -k without_keys",
    ),
    Bite(
        "postgres: a floor rises over a prepared transaction",
        f"{FOLDER}/migrations/004-pre-floors.sql",
        " OR w LIKE '-1/%'",
        "",
        "tests/conformance/test_postgres_floors.py -k prepared",
    ),
    Bite(
        "postgres: a lease whose number is not the clock's is not waited for on the disk",
        LEASES,
        "PERFORM set_config('synchronous_commit', reset_val, true) FROM pg_settings WHERE name = 'synchronous_commit';",
        "",
        "tests/conformance/test_postgres_promises.py -k clock_is_behind",
    ),
    Bite(
        "postgres: the plan of a page may be compiled",
        f"{FOLDER}/lists.py",
        ', "enable_mergejoin", "jit")',
        ', "enable_mergejoin")',
        "tests/conformance/test_postgres_plans.py -k a_page",
    ),
    Bite(
        "postgres: a node gives no sign of life while an ending is held up",
        "gotask/node/dispatcher.py",
        "        self._pulse.beat()\n",
        "",
        "tests/chaos/test_postgres_held.py -k its_lease",
    ),
    Bite(
        "postgres: a node waits for an ending that is held up",
        "gotask/node/heldup.py",
        "self._thread.submit(self._backend.settle_many, self._asked)\n",
        "self._thread.submit(self._backend.settle_many, self._asked)\n            self._answer.exception()\n",
        "tests/chaos/test_postgres_held.py -k no_other",
    ),
    Bite(
        "postgres: nobody stands in line for a job that is held",
        "gotask/node/heldup.py",
        "AGAIN_S: Final = 1.0",
        "AGAIN_S: Final = 8.0",
        "tests/chaos/test_postgres_held.py -k holds_up_no_other",
    ),
    Bite(
        "postgres: a dispatcher takes what was held up with it",
        "gotask/node/dispatcher.py",
        "        self._held_up.adopt()\n",
        "",
        "tests/chaos/test_postgres_held.py -k outlives",
    ),
    Bite(
        "postgres: a finished job that somebody holds keeps others from being revived",
        f"{FOLDER}/moving.py",
        '_revive(txn, some, reason, at), "finished")',
        "_revive(txn, some, reason, at))",
        "tests/conformance/test_postgres_held.py -k revival",
    ),
    Bite(
        "postgres: an ending that is held up counts as lost",
        f"{FOLDER}/batch.py",
        "None if name(one) in there else False",
        "False",
        "tests/conformance/test_postgres_held.py -k endings",
    ),
    Bite(
        "postgres: what a long transaction makes dear is done in each tick",
        f"{FOLDER}/due.py",
        "look = begun >= self._look_at",
        "look = True",
        "tests/conformance/test_postgres_floors.py -k lapses_are_looked_for",
    ),
]
