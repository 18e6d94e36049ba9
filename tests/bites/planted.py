"""The bugs. `old` must stand exactly once in the file, so that a bite whose place has changed is noticed, not skipped."""

from typing import NamedTuple


class Bite(NamedTuple):
    name: str
    path: str
    old: str
    new: str
    tests: str  # what must notice it: arguments of pytest


BITES = [
    Bite(
        "no fence: an ack under an old lease is taken",
        "gotask/backends/sqlite/endings.py",
        "held = at is not None and at.job.lease == s.lease and not at.moved",
        "held = at is not None and not at.moved",
        "tests/conformance -k fenced",
    ),
    Bite(
        "priority is ignored",
        "gotask/backends/sqlite/sql.py",
        "ORDER BY j.priority DESC, j.place LIMIT ?3",
        "ORDER BY j.place LIMIT ?3",
        "tests/conformance -k priority",
    ),
    Bite(
        "nothing ages: the oldest of a low priority starves",
        "gotask/backends/sqlite/leases.py",
        "aged = (leased + n) // AGEING - leased // AGEING",
        "aged = 0",
        "tests/conformance -k oldest",
    ),
    Bite(
        "a lapse never ends in FAILED",
        "gotask/backends/sqlite/dues.py",
        "job.crashes >= CRASHES_MAX",
        "job.crashes >= 10 * CRASHES_MAX",
        "tests/conformance -k lapsed_job",
    ),
    Bite(
        "a poison job comes back for ever",
        "gotask/policy.py",
        "if alone and job.crashes + 1 >= CRASHES_MAX:",
        "if False:",
        "tests/unit/test_policy.py",
    ),
    Bite(
        "a job is done before it has run",
        "gotask/node/serial.py",
        "            try:\n                arguments = task",
        "            self._runner.done(ticket, task, None)\n            try:\n                arguments = task",
        "tests/crash/test_storms.py -k without_faults",
    ),
    Bite(
        "slots are freed before their endings are written down",
        "gotask/node/dispatcher.py",
        "        if settlements:\n            begun = monotonic()",
        "        self._segment.free_many(list(self.ledger.tickets))\n        self._segment.forget()\n        if settlements:\n"
        "            begun = monotonic()",
        "tests/crash/test_dispatcher.py",
    ),
    Bite(
        "a new dispatcher does not ask what the dead one had in hand",
        "gotask/node/dispatcher.py",
        "for stay in self._segment.adopt():",
        "for stay in self._segment.adopt()[:0]:",
        "tests/crash/test_storms.py -k dispatcher",
    ),
    Bite(
        "what a dead worker had reported is thrown away",
        "gotask/_core/judge.h",
        "    gt_recover_reports(s, owner);\n",
        "    (void)gt_recover_reports;\n",
        "tests/core/test_deaths.py -k stands",
    ),
    Bite(
        "jobs of a dead node wait for their lease",
        "gotask/node/registry.py",
        "    return True\n",
        "    return False\n",
        "tests/unit/test_registry.py -k orphans",
    ),
    Bite(
        "a neighbour pays for what another did",
        "gotask/node/frame.py",
        'return Outcome("released", f"its worker was stopped ({cause})")',
        'return Outcome("crashed", f"its worker was stopped ({cause})")',
        "tests/unit/test_node.py -k lost_frame",
    ),
    Bite(
        "a stopped node loses what it had not started",
        "gotask/node/dispatcher.py",
        "for ticket in self._segment.recall(0.0 if self.draining else policy.RELEASE_AFTER_S):",
        "for ticket in self._segment.recall(policy.RELEASE_AFTER_S if not self.draining else 1e6):",
        "tests/crash/test_poison.py -k had_not_started",
    ),
    Bite(
        "a queue that was asked for nothing counts as empty",
        "gotask/node/leaser.py",
        "if got[queue.name] == wants.get(queue.name, 0)]",
        "if got[queue.name] and got[queue.name] == wants.get(queue.name)]",
        "tests/crash/test_hostile.py -k starves",
    ),
    Bite(
        "what comes in does not make a node look at what is due",
        "gotask/node/dispatcher.py",
        'if not (rung or self._agenda.is_due("tick")):',
        'if not self._agenda.is_due("tick"):',
        "tests/crash/test_hostile.py -k on_time",
    ),
    Bite(
        "a successor lets what was leased and not handed over lapse",
        "gotask/node/dispatcher.py",
        'self._registry.release(self._owner, "its dispatcher was restarted", {(one.id, one.lease) for one in frames.values()})',
        "pass",
        "tests/crash/test_dispatcher.py -k acted",
    ),
    Bite(
        "leases are never extended",
        "gotask/node/dispatcher.py",
        "            self._extend(list(self.ledger.jobs))\n",
        "",
        "tests/crash/test_storms.py -k longer",
    ),
    Bite(
        "nobody looks for tasks that ignore their limit",
        "gotask/node/arbiter.py",
        "stuck = set(self._segment.stuck(STUCK_SLACK_S))",
        "stuck: set[int] = set()",
        "tests/crash/test_poison.py -k ignores_its_limit",
    ),
    Bite(
        "jobs of a lease whose answer was lost lapse",
        "gotask/node/leaser.py",
        "            self.unanswered = True\n",
        "",
        "tests/unit/test_dispatcher.py -k lost_answer",
    ),
    Bite(
        "after an outage nobody listens to the bell anew",
        "gotask/node/dispatcher.py",
        "        self._bell.lost()\n",
        "",
        "tests/unit/test_dispatcher.py -k anew",
    ),
    Bite(
        "the bell is listened to for the queues known at the start",
        "gotask/node/bell.py",
        "if queues == self._queues:",
        "if self._queues:",
        "tests/unit/test_dispatcher.py -k served",
    ),
    Bite(
        "an idle node asks each second",
        "gotask/node/leaser.py",
        "REST_S: Final = 2.0",
        "REST_S: Final = 1.0",
        "tests/unit/test_dispatcher.py -k idle",
    ),
    Bite(
        "a turn that asked the store nothing counts as an answer",
        "gotask/node/dispatcher.py",
        "if self._line.answers > answers:",
        "if True:",
        "tests/unit/test_dispatcher.py -k no_answer",
    ),
    Bite(
        "a file that another store's nodes need is removed",
        "gotask/node/registry.py",
        "                self._strangers.add(name)",
        "                path.unlink()",
        "tests/unit/test_registry.py -k another_store",
    ),
    Bite(
        "the time limit does not interrupt",
        "gotask/node/watchdog.py",
        "if ticket not in self._told and",
        "if False and",
        "tests/crash/test_running.py -k system_call",
    ),
    Bite(
        "publishing is relaxed",
        "gotask/_core/atomic.h",
        "#ifdef GT_WEAKEN",
        "#if 1",
        "tests/core/test_proofs.py -k tsan",
    ),
    Bite(
        "a slot is ready before all of it is written",
        "gotask/_core/ring.h",
        "        gt_store(&slot->length, f->length);\n        gt_store(&slot->ring, f->ring);\n",
        "        gt_store(&slot->word, gt_word_of(gt_word_generation(word), GT_READY, 0));\n"
        "        gt_store(&slot->length, f->length);\n        gt_store(&slot->ring, f->ring);\n",
        "tests/core/test_proofs.py -k sweep",
    ),
    Bite(
        "an enqueue answers before it is on disk",
        "gotask/backends/sqlite/link.py",
        "PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}",
        "PRAGMA synchronous = NORMAL",
        "tests/conformance/test_sqlite.py -k synced",
    ),
    Bite(
        "the same id with another body is taken for a duplicate",
        "gotask/backends/sqlite/intake.py",
        'if same_body(new, old) else "conflict"',
        'if same_body(new, old) else "duplicate"',
        "tests/conformance/test_enqueue.py",
    ),
]
