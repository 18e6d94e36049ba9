"""The parts of a node that need no other process."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gotask._core.ring import INNOCENT, OVERDUE, SUSPECT, SUSPECT_ALONE, TORN, Loss, Report
from gotask.errors import Cancel, Cancelled, NotConfigured, Retry, Snooze, TimeLimit
from gotask.model import ERROR_MAX, Job, Rules, Settlement
from gotask.node import frame
from gotask.node.catalog import Catalog
from gotask.node.ledger import Ledger
from gotask.node.notices import COMPLETIONS_AT, HELD_UP_AT, Notices, TaskSpec
from gotask.node.worker import load_tasks
from gotask.policy import Outcome
from gotask.states import Event
from gotask.task import Misfit, Task
from gotask.verdict import interruption, judge, text


def task(**options: object) -> Task[[], None]:
    def body() -> None: ...

    return Task(body, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "verdict", "seconds"),
    [
        (Retry(7.0), "retry", 7.0),
        (Snooze(8.0), "snooze", 8.0),
        (Cancel("enough"), "cancelled", None),
        (Cancelled(), "cancelled", None),
        (TimeLimit(), "timeout", None),
        (Misfit("no"), "misfit", None),
        (ValueError("boom"), "failed", None),
        (SystemExit(3), "failed", None),
        (KeyboardInterrupt(), "failed", None),
    ],
)
def test_each_way_to_end_has_its_verdict(error: BaseException, verdict: str, seconds: float | None) -> None:
    outcome = judge(task(), error, 12.5)
    assert (outcome.verdict, outcome.seconds) == (verdict, seconds)


def test_the_task_says_which_exceptions_may_be_retried() -> None:
    picky = task(no_retry_on=(ValueError,))
    assert not judge(picky, ValueError(), 1.0).retryable
    assert judge(picky, KeyError(), 1.0).retryable


def test_an_error_text_keeps_its_end_and_survives_a_broken_str() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    assert text(Broken())  # whatever it says, it says something
    long = text(ValueError("x" * 50_000 + "the end"))
    assert len(long) <= ERROR_MAX
    assert long.endswith("the end")


def test_a_cancelled_coroutine_is_told_apart_from_one_that_cancelled_itself() -> None:
    own = asyncio.CancelledError()
    assert isinstance(interruption(own, TimeLimit), TimeLimit)
    assert isinstance(interruption(own, Cancelled), Cancelled)
    assert interruption(own, None) is own
    other = ValueError()
    assert interruption(other, TimeLimit) is other


def test_a_frame_carries_what_a_run_needs() -> None:
    job = Job(id="a", type="t", queue="q", lease=9, retry_count=1, crashes=2, metadata={"k": 1})
    read = frame.decode(frame.encode(job, 30.0))
    assert (read.id, read.type, read.queue, read.lease, read.retry_count, read.crashes, read.timeout, read.metadata) == (
        *("a", "t", "q", 9, 1, 2, 30.0),
        {"k": 1},
    )


@pytest.mark.parametrize(
    ("verdict", "cancelled", "expected"),
    [
        (SUSPECT, False, Outcome("crashed", alone=False)),
        (SUSPECT_ALONE, False, Outcome("crashed", alone=True)),
        (OVERDUE, False, Outcome("timeout")),
        (OVERDUE, True, Outcome("cancelled")),
        (INNOCENT, False, Outcome("released")),
    ],
)
def test_a_lost_frame_is_judged_by_how_its_worker_died(verdict: int, cancelled: bool, expected: Outcome) -> None:
    outcome = frame.outcome_of_loss(Loss(1, verdict, 9), cancelled)
    assert (outcome.verdict, outcome.alone) == (expected.verdict, expected.alone)
    assert outcome.error


def test_a_wait_status_is_said_in_words() -> None:
    assert frame.death(9) == "killed by SIGKILL"
    assert frame.death(3 << 8) == "exited with code 3"


def test_a_torn_result_means_running_again() -> None:
    assert frame.read_outcome(TORN, b"").verdict == "released"


def test_notices_outlive_their_writers_and_a_torn_table_is_no_table() -> None:
    # Given a board nobody wrote on
    board = Notices()
    assert board.tasks() is None
    assert not board.cut_off
    # When a worker publishes its tasks, and another generation fewer
    board.publish([TaskSpec("a", "q", Rules(max_retries=1)), TaskSpec("b", "q", Rules())])
    board.publish([TaskSpec("c", "q", Rules(timeout=2.0))])
    # Then the last one stands
    tasks = board.tasks()
    assert tasks is not None
    assert set(tasks) == {"c"}
    assert tasks["c"].rules.timeout == 2.0
    # And a half-written one is not believed
    os.pwrite(board._fd, b"\xff", 16)
    assert board.tasks() is None
    board.cut_off = True
    assert board.cut_off


def test_of_what_a_dispatcher_leaves_the_last_whole_one_stands() -> None:
    # Given a dispatcher that says three times what the next one must know
    board = Notices()
    assert board.left(HELD_UP_AT) is None
    for said in (b"first", b"second", b"third"):
        board.leave(said, HELD_UP_AT)
        assert board.left(HELD_UP_AT) == said
    assert board.left(COMPLETIONS_AT) is None
    # When it is killed in the middle of the fourth
    board.leave(b"fourth", HELD_UP_AT)
    os.pwrite(board._fd, b"\xff", os.fstat(board._fd).st_size - 1)
    # Then the third stands, and is not overwritten by the next
    assert board.left(HELD_UP_AT) == b"third"
    board.leave(b"fifth", HELD_UP_AT)
    assert board.left(HELD_UP_AT) == b"fifth"


nothing: Any = None  # where a part needs no store


def test_a_ledger_counts_a_ticket_once_however_often_it_is_lost() -> None:
    ledger = Ledger(Catalog(nothing, Notices(), []))
    ledger.jobs[7] = Job(id="a", lease=1)
    ledger.done_many([Report(7, frame.DONE, True, 0.1, b"null")] * 2)
    ledger.tickets.add(7)
    assert ledger.tickets == {7}
    assert not ledger.empty
    assert ledger.settlements == [Settlement("a", 1, Event.ACK)]
    # And what is being written down is in hand until it is
    settlements, tickets = ledger.take_ended()
    assert ([one.id for one in settlements], tickets, ledger.empty) == (["a"], {7}, False)
    ledger.unwritten()
    assert (ledger.settlements, ledger.tickets) == (settlements, {7})
    ledger.take_ended()
    assert ledger.written() == 2
    assert ledger.empty


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("no_such_module_at_all:app", "cannot be imported: ModuleNotFoundError"),
        ("broken_app:app", "cannot be imported: ZeroDivisionError"),
        ("os:path", "There is no GoTask app called 'path' in os"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_a_sentence(
    spec: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_app.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotConfigured, match=sentence):
        load_tasks(spec)


def test_the_builtin_app_is_there_when_none_is_named() -> None:
    assert {"echo", "math", "email", "report"} <= set(load_tasks(""))
    assert "gotask.builtin" in sys.modules
