"""The user's door: every way to enqueue, what a handle tells, and apps across forks. On a real store in a folder of its own."""

import asyncio
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from gotask import (
    Cancel,
    Conflict,
    Context,
    GoTask,
    InvalidInput,
    JobFailed,
    JobHandle,
    JobOptions,
    NotFound,
    ResultTimeout,
    Retry,
    Snooze,
    State,
    Task,
    TimeLimit,
)
from gotask.errors import TooLarge
from gotask.handle import RemoteTraceback
from gotask.model import NewJob, Worker
from gotask.service import Service
from gotask.task import TaskOptions
from gotask.testing import drain, inline


@pytest.fixture
def app(tmp_path: Path) -> Iterator[GoTask]:
    with GoTask(f"sqlite:///{tmp_path}/jobs.db") as made:

        @made.task(queue="sums", priority=2)
        def add(a: int, b: int = 2) -> int:
            """Add two numbers."""
            return a + b

        @made.task(max_retries=0)
        def divide(a: int, b: int) -> float:
            return a / b

        @made.task
        async def greet(ctx: Context, name: str) -> str:
            ctx.progress(50, "half way")
            await asyncio.sleep(0)
            return f"{name} {ctx.attempt}"

        yield made


def task(app: GoTask, name: str) -> Any:
    return app.tasks[name]


def test_a_job_goes_to_its_tasks_queue_and_comes_back_with_its_result(app: GoTask) -> None:
    # Given a task with a queue and a priority
    add = task(app, "add")

    # When it is enqueued, and a worker takes it
    job = add.delay(1, b=41)
    assert (job.state, job.job.queue, job.job.priority, bytes(job.job.payload)) == (State.PENDING, "sums", 2, b'{"a":1,"b":41}')
    assert drain(app) == 1

    # Then the handle has its result, and its last look is renewed by it
    assert job.result(timeout=5) == 42
    assert job.state is State.SUCCESS
    assert [attempt.outcome for attempt in job.attempts] == ["ack"]


def test_a_plain_call_runs_the_function_now(app: GoTask) -> None:
    assert task(app, "add")(1) == 3
    assert task(app, "add").__doc__ == "Add two numbers."
    assert asyncio.run(task(app, "greet")("you")) == "you 1"
    assert asyncio.run(task(app, "greet")(name="you")) == "you 1"
    assert asyncio.run(task(app, "greet")(Context(attempt=3), "you")) == "you 3"
    assert asyncio.run(task(app, "greet")(name="you", ctx=Context(attempt=3))) == "you 3"
    assert app.queue("default").stats().pending_count == 0


def test_both_spellings_of_the_decorator_make_a_task(app: GoTask) -> None:
    @app.task
    def plain() -> None: ...

    @app.task()
    def called() -> None: ...

    @app.task(name="mail.send", max_retries=1)
    def named() -> None: ...

    assert {"plain", "called", "mail.send"} <= app.tasks.keys()
    assert app.tasks["mail.send"].rules.max_retries == 1
    assert isinstance(plain, Task)


def test_options_are_the_jobs(app: GoTask) -> None:
    # When a job is enqueued with every option there is
    expires = datetime.now(UTC) + timedelta(days=2)
    options: JobOptions = {
        "id": "job-1",
        "queue": "other",
        "priority": 7,
        "delay": 60,
        "expires_at": expires,
        "unique_key": "k",
        "max_retries": 9,
        "retry_strategy": "LINEAR",
        "retry_delay": 2,
        "max_retry_delay": 20,
        "retry_jitter": True,
        "timeout": 3,
        "metadata": {"trace": "t"},
    }
    job = task(app, "add").options(**options).enqueue(1).refresh().job

    # Then the stored job has them
    assert (job.id, job.queue, job.priority, job.status) == ("job-1", "other", 7, State.SCHEDULED)
    assert (job.unique_key, job.max_retries, job.timeout, job.metadata) == ("k", 9, 3, {"trace": "t"})
    assert (job.retry_strategy, job.retry_delay, job.max_retry_delay, job.retry_jitter) == ("linear", 2, 20, True)
    assert job.expires_at is not None
    assert abs(job.expires_at - expires) < timedelta(milliseconds=1)
    # And durations may be timedeltas
    later = task(app, "add").options(delay=timedelta(minutes=5), timeout=timedelta(seconds=3), retry_delay=timedelta(0))
    assert (later.enqueue(1).state, later.enqueue(1).job.timeout) == (State.SCHEDULED, 3)
    assert app.enqueue("add", {"a": 1}, delay=timedelta(hours=1)).state is State.SCHEDULED
    assert app.enqueue_many([{"type": "x", "delay": timedelta(hours=1)}])[0].state is State.SCHEDULED
    assert Task(_quiet, timeout=timedelta(minutes=1)).rules.timeout == 60
    # And options add up
    assert task(app, "add").options(priority=5).options(queue="third").enqueue(1).job.priority == 5


def test_options_written_for_type_checkers_are_those_of_the_model() -> None:
    assert JobOptions.__annotations__.keys() - {"connection", "notify"} == set(NewJob.__struct_fields__) - {"type", "payload"}
    assert set(NewJob.__struct_fields__) >= TaskOptions.__annotations__.keys() - {"name", "retry_on", "no_retry_on"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"priority": 10}, "priority: expected a whole number of at most 9, got 10."),
        ({"queue": "no spaces"}, "queue: 'no spaces' is not a name; use letters, digits and _ . : -, at most 128 characters."),
        ({"dely": 1}, "ption 'dely' is not known; did you mean 'delay'?"),
        ({"prio": 3}, "ption 'prio' is not known; did you mean 'priority'?"),
        ({"type": "x"}, "ption 'type' is not known; possible are id, queue, priority"),
        ({"delay": -1}, "delay: expected a number of at least 0, got -1."),
        ({"delay": "5m"}, "delay: expected a number or null, got text."),
        ({"priority": timedelta(1)}, "priority: expected a whole number, got a duration."),
        ({"delay": 1, "scheduled_at": datetime.now(UTC)}, "either a delay or scheduled_at"),
        (
            {"scheduled_at": datetime(2030, 1, 1)},
            "scheduled_at: the time has no zone; make it aware with tzinfo=UTC or .astimezone().",
        ),
        ({"metadata": {"a": float("nan")}}, "metadata: $.a is nan"),
        ({"unique_key": "\ud800"}, "unique_key: it has half a surrogate pair"),
    ],
    ids=str,
)
def test_options_out_of_bounds_are_refused_when_they_are_said(app: GoTask, options: Any, expected: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        task(app, "add").options(**options)
    assert expected in str(refusal.value)
    with pytest.raises(InvalidInput):
        app.enqueue("unheard.of", {}, **options)


def test_the_same_id_is_one_job_and_another_body_a_conflict(app: GoTask) -> None:
    add = task(app, "add").options(id="once")
    assert add.enqueue(1).id == add.enqueue(1).id == "once"
    assert app.queue("sums").stats().pending_count == 1
    with pytest.raises(Conflict, match="'once'"):
        add.enqueue(2)


def test_a_unique_key_answers_with_the_job_that_stands(app: GoTask) -> None:
    add = task(app, "add").options(unique_key="k")
    assert add.enqueue(1).id == add.enqueue(1).id


def test_by_name_a_known_task_keeps_its_queue_and_its_hints(app: GoTask) -> None:
    assert app.enqueue("add", {"a": 1}).job.queue == "sums"
    assert app.enqueue("add", {"a": 1}, queue="other").job.queue == "other"
    assert bytes(app.enqueue("of.another.program").job.payload) == b"{}"
    assert bytes(app.enqueue("of.another.program", b'{"as": "bytes"}').job.payload) == b'{"as": "bytes"}'
    with pytest.raises(InvalidInput, match="field 'a' is missing"):
        app.enqueue("add", {})
    with pytest.raises(InvalidInput, match="not valid JSON"):
        app.enqueue("of.another.program", b"{")


def test_many_are_enqueued_in_order_from_a_generator(app: GoTask) -> None:
    # Given more jobs than fit a batch, by two ways
    many = app.enqueue_many({"type": "x", "payload": {"n": n}, "metadata": {"n": n}} for n in range(2500))
    mapped = task(app, "add").map([1, (1, 2), {"a": 3}, *range(2000)])

    # Then each has its handle, in order
    assert len({job.id for job in many}) == 2500
    assert [json.loads(bytes(job.job.payload))["n"] for job in many] == list(range(2500))
    assert [bytes(job.job.payload) for job in mapped[:3]] == [b'{"a":1}', b'{"a":1,"b":2}', b'{"a":3}']
    assert app.queue("sums").stats().pending_count == 2003
    assert app.enqueue_many([]) == []


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"payload": {}}, "Field 'type' is missing."),
        ({"type": "a b"}, "type: 'a b' is not a name"),
        ({"type": "x", "payload": [1]}, "payload: a JSON object is expected, with the task's arguments by name."),
        ({"type": "x", "payload": b"null"}, "payload: a JSON object is expected"),
        ({"type": "add", "paylod": {"a": 1}}, "Field 'paylod' is not known; did you mean 'payload'?"),
        ({"type": "x", "priority": 12}, "priority: "),
        ({"type": "x", "prio": 1}, "Field 'prio' is not known; did you mean 'priority'?"),
        ({"type": "add", "payload": {"a": "1"}}, "a: expected a whole number, got text."),
        ({"type": "x", "payload": {"a": float("nan")}}, "payload: $.a is nan"),
        ({"type": "x", "payload": "x" * 1_048_576}, "payload: As JSON"),
        ({"type": ["x"]}, "type: expected text, got a list."),
        (5, "A job is a mapping"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_job_among_many_is_told_by_its_index_and_spoils_its_batch_only(app: GoTask, bad: Any, expected: str) -> None:
    jobs: list[Any] = [{"type": "x"}] * 1500
    jobs[1200] = bad
    with pytest.raises((InvalidInput, TooLarge), match="Item 1200: ") as refusal:
        app.enqueue_many(jobs)
    assert expected in str(refusal.value)
    assert app.queue("default").stats().pending_count == 1000


def test_a_failure_comes_back_with_the_remote_traceback(app: GoTask) -> None:
    job = task(app, "divide").delay(1, 0)
    drain(app)
    with pytest.raises(JobFailed, match=rf"Job {job.id} \(divide\) is FAILED: ZeroDivisionError: division by zero\.") as failed:
        job.result(5)
    assert isinstance(failed.value.__cause__, RemoteTraceback)
    assert "return a / b" in str(failed.value.__cause__)
    assert "ZeroDivisionError" in (job.error or "")
    told = failed.value
    assert (told.job_id, told.error_type, told.reason) == (job.id, "ZeroDivisionError", "ZeroDivisionError: division by zero")
    assert vars(pickle.loads(pickle.dumps(told))) == vars(told)


def _lines() -> None:
    raise ValueError("outer\nmultiline")


def _chained() -> None:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise LookupError("second: Traceback (most recent call last):\n  more\nValueError: not this") from error


def _quiet() -> None:
    raise RuntimeError


def _elsewhere() -> None:
    json.loads("{")


def _grouped() -> None:
    raise ExceptionGroup("some", [ValueError(1), _Own("two")])


class _Own(Exception):
    pass


def _limited() -> None:
    raise TimeLimit


def _asking() -> None:
    raise Retry(0, "not yet")


def _cancelling() -> None:
    raise Cancel("done: nothing to do")


def _misfitting() -> Any:
    return object()


@pytest.mark.parametrize(
    ("function", "reason", "kind"),
    [
        (_lines, "ValueError: outer", "ValueError"),
        (_chained, "LookupError: second: Traceback (most recent call last):", "LookupError"),
        (_quiet, "RuntimeError", "RuntimeError"),
        (_elsewhere, "json.decoder.JSONDecodeError: Expecting property name", "JSONDecodeError"),
        (_grouped, "ExceptionGroup: some (2 sub-exceptions)", "ExceptionGroup"),
        (_limited, "TimeLimit: it ran longer than its 7 seconds", "TimeLimit"),
        (_asking, "gotask.errors.Retry: not yet", "Retry"),
        (_cancelling, "done: nothing to do", None),
        (_misfitting, "Task '_misfitting' returned what cannot be stored", None),
    ],
)
def test_a_failure_is_told_apart_by_its_class_and_first_line(app: GoTask, function: Any, reason: str, kind: str | None) -> None:
    job = app.task(max_retries=0, timeout=7)(function).delay()
    drain(app)
    with pytest.raises(JobFailed) as failed:
        job.result(5)
    assert failed.value.reason.startswith(reason)
    assert "\n" not in str(failed.value)
    assert reason in str(failed.value)
    assert failed.value.error_type == kind


def test_a_result_that_is_not_there_yet_is_a_timeout(app: GoTask) -> None:
    job = task(app, "add").delay(1)
    assert not job.wait(0)
    with pytest.raises(ResultTimeout, match=r"still PENDING after 0\.01 seconds"):
        job.result(timeout=0.01)


def test_a_job_that_nobody_will_run_is_told(app: GoTask) -> None:
    # Given a job, and no node for its queue
    job = task(app, "add").delay(1)
    store = app.service.backend
    store.put(Worker(name="other", queues=["default"], types=["add"]))
    # Then who waits in vain is told how to start one
    with pytest.raises(
        ResultTimeout, match=r"seconds: no worker serves queue 'sums'; start one with `gotask worker -Q sums`\."
    ):
        job.result(0)
    # And when there is one without the task, of that
    store.put(Worker(name="node", queues=["sums"], types=["echo"]))
    with pytest.raises(ResultTimeout, match=r"no worker of queue 'sums' has a task 'add'"):
        job.result(0)
    # And when there is one, to be patient
    store.put(Worker(name="third", queues=["sums"], types=["add"]))
    with pytest.raises(ResultTimeout, match="wait longer"):
        job.result(0)


def test_a_result_of_another_shape_than_promised_is_told(app: GoTask) -> None:
    @app.task
    def liar() -> int:
        return cast(int, "text")

    job = liar.delay()
    drain(app)
    with pytest.raises(
        InvalidInput,
        match=r"is SUCCESS, but what it returned is not of its task's return type: expected a whole number, got text\.",
    ):
        job.result()
    assert app.job(job.id).result() == "text"  # by id nothing was promised


def test_waiting_is_woken_by_the_end(app: GoTask) -> None:
    # Given a job, and a worker that starts only when somebody waits
    job = task(app, "greet").delay("you")
    worker = threading.Thread(target=drain, args=(app,))
    worker.start()

    # When it is waited for without limit, then the wait ends with the job
    assert job.result() == "you 1"
    worker.join()
    assert (job.progress, job.progress_note) == (50, "half way")


def test_coroutines_enqueue_and_await(app: GoTask) -> None:
    async def main() -> list[Any]:
        jobs = [await task(app, "greet").aenqueue(name) for name in "abc"]
        jobs.append(await app.aenqueue("add", {"a": 1}))
        worker = asyncio.get_running_loop().run_in_executor(None, drain, app)
        results = await asyncio.gather(*jobs)
        await worker
        return results

    assert asyncio.run(main()) == ["a 1", "b 1", "c 1", 3]


def test_an_awaited_failure_is_raised(app: GoTask) -> None:
    async def main() -> None:
        job = await task(app, "divide").aenqueue(1, 0)
        await asyncio.get_running_loop().run_in_executor(None, drain, app)
        await job

    with pytest.raises(JobFailed, match="division by zero"):
        asyncio.run(main())


def test_a_job_is_cancelled_and_revived(app: GoTask) -> None:
    job = task(app, "add").delay(1)
    job.cancel()
    assert job.state is State.CANCELLED
    with pytest.raises(JobFailed, match="is CANCELLED"):
        job.result()
    with pytest.raises(Conflict):
        job.cancel()
    job.revive()
    assert job.state is State.PENDING
    drain(app)
    assert job.result() == 3


def test_an_unknown_id_is_not_found(app: GoTask) -> None:
    with pytest.raises(NotFound, match="'no-such-job'"):
        _ = app.job("no-such-job").state


def test_a_queue_is_counted_paused_and_purged_also_before_its_first_job(app: GoTask) -> None:
    queue = app.queue("new")
    assert queue.stats().pending_count == 0
    assert queue.purge() == 0
    queue.resume()
    queue.pause()
    assert queue.stats().paused
    app.enqueue_many([{"type": "add", "payload": {"a": 1}, "queue": "new"}] * 3)
    assert drain(app) == 0
    queue.resume()
    assert not queue.stats().paused
    assert queue.purge() == 3


def test_drain_follows_retries_snoozes_and_what_jobs_enqueue(app: GoTask) -> None:
    runs: list[str] = []

    @app.task(max_retries=2, retry_delay=0)
    def flaky(ctx: Context) -> str:
        runs.append(f"flaky {ctx.attempt}")
        if ctx.retry_count < 2:
            raise Retry(0, "not yet")
        app.enqueue("add", {"a": 1})
        return "done"

    @app.task
    def later() -> None:
        raise Snooze(60, "not now")

    @app.task
    def never() -> None:
        raise Cancel("not at all")

    jobs = [flaky.delay(), later.delay(), never.delay()]
    assert drain(app) == 6
    assert runs == ["flaky 1", "flaky 2", "flaky 3"]
    assert [job.refresh().state for job in jobs] == [State.SUCCESS, State.SCHEDULED, State.CANCELLED]


def test_inline_runs_jobs_at_once_without_a_store(tmp_path: Path) -> None:
    # Given an app whose store could not even be opened
    app = GoTask("nosuch://store")

    @app.task(max_retries=2)
    def work(ctx: Context, n: int) -> dict[str, int]:
        if ctx.attempt <= n:
            raise ValueError(n)
        return {"attempt": ctx.attempt}

    with inline(app):
        # Then a job has ended when it is enqueued, its retries included
        assert work.delay(0).result() == {"attempt": 1}
        assert work.delay(2).result() == {"attempt": 3}
        failed = work.delay(5)
        assert (failed.state, failed.job.retry_count) == (State.FAILED, 2)
        assert asyncio.run(_enqueue_and_await(work)) == {"attempt": 1}
        # And what production would refuse is refused here
        with pytest.raises(InvalidInput):
            work.delay(cast(int, "1"))
        with pytest.raises(InvalidInput, match="no task called"):
            app.enqueue("unheard.of")
    assert not list(tmp_path.iterdir())


async def _enqueue_and_await(work: Any) -> Any:
    return await (await work.aenqueue(0))


class Remote:
    """A service as it looks over HTTP: the API's operations, and no batch of Structs."""

    def __init__(self, service: Service) -> None:
        for name in ("create_job", "create_jobs", "get_job", "wait_job", "queue_stats"):
            setattr(self, name, getattr(service, name))


def test_over_http_one_goes_alone_and_many_as_a_batch(app: GoTask) -> None:
    # Given an app that reaches its store through the API's operations alone
    app._stand_in = cast(Service, Remote(app.service))

    # Then all works as before
    assert bytes(task(app, "add").delay(1).job.payload) == b'{"a":1}'
    jobs = app.enqueue_many({"type": "add", "payload": {"a": n}} for n in range(1500))
    assert [bytes(job.job.payload) for job in jobs[:2]] == [b'{"a":0}', b'{"a":1}']
    assert app.queue("sums").stats().pending_count == 1501
    with pytest.raises(Conflict, match="Job 1 of its batch"):
        app.enqueue_many([{"type": "x"}, {"type": "y", "id": jobs[0].id}])


FORK = """
import os, sys
from gotask import GoTask
from gotask.testing import drain

app = GoTask(sys.argv[1])

@app.task
def add(a: int) -> int:
    return a + 1

before = add.delay(1)
mine = app.service
child = os.fork()
if child == 0:
    assert app.service is not mine
    assert add.delay(2).id != before.id
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert app.service is mine
assert drain(app) == 2
assert before.result(5) == 2
app.close()
"""


def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", FORK, f"sqlite:///{tmp_path}/jobs.db"], check=True, timeout=60)


def test_importing_is_light_and_opens_nothing() -> None:
    # When an app is made, and nothing is enqueued
    code = (
        "import sys; from gotask import GoTask, Context; app = GoTask('sqlite:///nowhere/at/all.db')\n"
        "@app.task\ndef f(ctx: Context) -> None: ...\n"
        "print(*[name for name in ('apsw', 'httpx', 'asyncio', 'numpy', 'gotask.service') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

    # Then no database, HTTP library or event loop was loaded
    assert done.stdout.strip() == ""


def test_without_a_url_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOTASK_STORAGE", f"sqlite:///{tmp_path}/env.db")
    with GoTask() as app:
        app.enqueue("x")
    assert (tmp_path / "env.db").exists()
    assert "env.db" not in repr(app)


def test_names_that_are_not_there_are_errors() -> None:
    import gotask

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = gotask.Nothing  # type: ignore[attr-defined]
    assert all(getattr(gotask, name) is not None for name in gotask.__all__)


def test_handles_show_no_payload(app: GoTask) -> None:
    job: JobHandle[Any] = task(app, "add").delay(12345)
    assert repr(job) == f"<JobHandle {job.id} add PENDING>"
