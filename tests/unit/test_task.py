"""Tasks: the signature is the schema, misfits are told in a sentence, and calls arrive as they were made."""

import asyncio
import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gotask.context import Context, NoLine
from gotask.errors import InvalidInput, NotConfigured, TimeLimit, TooLarge
from gotask.model import Strategy
from gotask.task import Misfit, Task, Tasks


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    prices: dict[int, float] = field(default_factory=dict)


class Order(msgspec.Struct):
    items: list[Item]
    colour: Colour = Colour.RED


class Unknown:
    """A class that JSON has no form for."""


def everything(
    order: Order,
    at: datetime,
    key: uuid.UUID | None = None,
    *,
    tags: set[str] | None = None,
    by_day: dict[int, str] | None = None,
) -> Any:
    return order, at, key, tags, by_day


def typed(number: int, text: str = "x", *, flags: list[bool] = []) -> Any:  # noqa: B006 - what users write
    return number, text, flags


def run(task: Task[..., Any], raw: bytes, ctx: Context | None = None) -> Any:
    return task.call(task.decode(raw), ctx)


def test_arguments_come_back_as_their_hints_say() -> None:
    # Given a task with rich hints
    task = Task(everything)
    order = Order([Item("a", {1: 2.5})])
    at, key = datetime(2030, 1, 1, tzinfo=UTC), uuid.uuid4()

    # When a producer binds arguments, and a worker decodes and calls
    got = run(task, task.bind(order, at, key, tags={"x"}, by_day={3: "wed"}))

    # Then the function sees what was given
    assert got == (order, at, key, {"x"}, {3: "wed"})


def test_defaults_are_the_workers_and_not_sent() -> None:
    task = Task(typed)
    assert task.bind(1) == b'{"number":1}'
    assert run(task, b'{"number":1}') == (1, "x", [])
    # the very object of the definition, as in a plain call
    assert run(task, b'{"number":1}')[2] is typed.__kwdefaults__["flags"]


def test_a_default_may_be_anything() -> None:
    nothing = object()

    def task(a: Any = nothing, b: Any = (1, [2])) -> Any:
        return a, b

    assert run(Task(task), b"{}") == (nothing, (1, [2]))


def test_parameters_may_have_any_name() -> None:
    def task(args, ctx, function, fill, self, name, object):  # type: ignore[no-untyped-def]
        return [args, ctx, function, fill, self, name, object]

    made = Task(task)
    assert run(made, made.bind(1, 2, 3, fill=4, self=5, name=6, object=7)) == [1, 2, 3, 4, 5, 6, 7]


MISFITS = {
    "missing": (b"{}", "field 'number' is missing"),
    "unknown": (b'{"number": 1, "nmae": 2}', "field 'nmae' is not known; possible are number, text, flags."),
    "wrong type": (b'{"number": "1"}', "number: expected a whole number, got text."),
    "wrong type inside": (b'{"number": 1, "flags": [true, 1]}', "flags[1]: expected a boolean, got a whole number."),
    "null": (b'{"number": null}', "number: expected a whole number, got null."),
    "a float": (b'{"number": 1.5}', "number: expected a whole number, got a number."),
    "an array": (b"[1]", "expected an object, got a list"),
    "a scalar": (b"1", "expected an object, got a whole number"),
    "not JSON": (b'{"number"', "input data was truncated"),
    "not UTF-8": (b'{"number": 1, "text": "\xff"}', "not valid UTF-8"),
    "too deep": (b'{"number": ' + b"[" * 100_000, "cannot take this payload"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_payload_that_does_not_fit_is_a_misfit(name: str) -> None:
    raw, expected = MISFITS[name]
    with pytest.raises(Misfit) as misfit:
        Task(typed).decode(raw)
    assert str(misfit.value).startswith("Task 'typed' cannot take this payload: ")
    assert expected in str(misfit.value)
    assert str(misfit.value).endswith(".")


def test_nested_misfits_name_the_whole_way() -> None:
    with pytest.raises(Misfit, match=r"field 'order\.items\[0\]\.name' is missing"):
        Task(everything).decode(b'{"order": {"items": [{}]}, "at": "2030-01-01T00:00:00Z"}')


CALLS: dict[str, tuple[Callable[[Task[..., Any]], bytes], str]] = {
    "too few": (lambda task: task.bind(), "missing 1 required positional argument: 'number'"),
    "too many": (lambda task: task.bind(1, "a", []), "takes from 1 to 2 positional arguments but 3 were given"),
    "unknown name": (lambda task: task.bind(1, nmae=2), "unexpected keyword argument 'nmae'"),
    "twice": (lambda task: task.bind(1, number=2), "multiple values for argument 'number'"),
    "wrong type": (lambda task: task.bind("1"), "number: expected a whole number, got text."),
    "not JSON": (lambda task: task.bind(1, object()), "$.text cannot become JSON"),
    "NaN": (lambda task: task.bind(float("nan")), "$.number is nan"),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_do_not_fit_are_refused_at_the_producer(name: str) -> None:
    call, expected = CALLS[name]
    with pytest.raises(InvalidInput) as refusal:
        call(Task(typed))
    assert expected in str(refusal.value)
    assert "Task 'typed'" in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_a_payload_that_is_too_large_is_refused_at_the_producer() -> None:
    with pytest.raises(TooLarge, match="1048576"):
        Task(typed).bind(1, "x" * 1_048_576)


def test_kwargs_take_what_is_left_over_as_their_hint_says() -> None:
    def task(a: int, **rest: float) -> Any:
        return a, rest

    made = Task(task)
    assert run(made, made.bind(1, b=2)) == (1, {"b": 2.0})
    with pytest.raises(Misfit, match="b: expected a number, got text"):
        made.decode(b'{"a": 1, "b": "x"}')


def test_kwargs_alone_take_the_whole_object() -> None:
    def task(**whole: Any) -> Any:
        return whole

    made = Task(task)
    assert run(made, b'{"class": 1, "two words": [2]}') == {"class": 1, "two words": [2]}
    with pytest.raises(Misfit, match="expected an object, got a list"):
        made.decode(b"[]")


def test_the_context_is_handed_in_wherever_it_stands() -> None:
    # Given tasks that ask for their context in four ways
    def first(ctx: Context, a: int) -> Any:
        return ctx, a

    def last(a: int, ctx: Context) -> Any:
        return ctx, a

    def named(a: int, *, ctx: Context) -> Any:
        return ctx, a

    def perhaps(a: int, context: Context | None = None) -> Any:
        return context, a

    ctx = Context(id="j1")
    for function in (first, last, named, perhaps):
        task = Task(function)
        # Then it is no part of the payload, and comes from the node
        assert task.context_parameter in ("ctx", "context")
        assert task.bind(7) == b'{"a":7}'
        assert run(task, b'{"a":7}', ctx) == (ctx, 7)
        with pytest.raises((Misfit, InvalidInput)):
            task.decode(b'{"a":7,"ctx":{"id":"j2"},"context":{}}')
    # And a list of contexts is not one
    with pytest.raises(NotConfigured):
        Task(_two_contexts)
    assert Task(typed).context_parameter is None


def _two_contexts(a: Context, b: Context) -> None: ...


def _positional(a: int, /) -> None: ...


def _star(*a: int) -> None: ...


def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


def _no_json(a: Unknown) -> None: ...


def _no_json_inside(a: list[Unknown | None]) -> None: ...


def _ambiguous(a: list[int] | tuple[int, int]) -> None: ...


def _unreadable(a: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point of it


REFUSED = {
    _two_contexts: "two parameters annotated Context",
    _positional: "a (positional only)",
    _star: "the parameter *a",
    _generator: "is a generator",
    _async_generator: "is a generator",
    _no_json: "Unknown has no form in JSON",
    _no_json_inside: "Unknown has no form in JSON",
    _ambiguous: "may not contain more than one array-like",
    _unreadable: "name 'Missing' is not defined",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_functions_that_cannot_be_tasks_are_refused_at_once(function: Callable[..., Any]) -> None:
    with pytest.raises(NotConfigured) as refusal:
        Task(function, name="t")
    assert REFUSED[function] in str(refusal.value)
    assert "'t'" in str(refusal.value)
    assert str(refusal.value).endswith(".")


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "two words"}, "'two words' is not a name; use letters"),
    "queue": ({"queue": ""}, "queue: '' is not a name"),
    "priority": ({"priority": 10}, "priority: expected a whole number of at most 9, got 10."),
    "timeout": ({"timeout": 0}, "timeout: expected a number above 0, got 0."),
    "retries": ({"max_retries": -1}, "max_retries: expected a whole number of at least 0"),
    "strategy": ({"retry_strategy": "slow"}, "retry_strategy: 'slow' is not one of fixed, linear, exponential."),
    "misspelt": ({"max_retry": 3}, "option 'max_retry' is not known; did you mean 'max_retries'?"),
    "unheard of": ({"zzz": 3}, "possible are name, queue"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_out_of_bounds_are_refused(name: str) -> None:
    options, expected = OPTIONS[name]
    with pytest.raises(InvalidInput) as refusal:
        Task(typed, **options)
    assert expected in str(refusal.value)


def test_rules_are_those_given_and_nothing_else() -> None:
    rules = Task(typed, max_retries=5, retry_strategy="LINEAR", timeout=30).rules
    assert (rules.max_retries, rules.retry_strategy, rules.timeout) == (5, Strategy.LINEAR, 30)
    assert (rules.retry_delay, rules.max_retry_delay, rules.retry_jitter) == (None, None, None)


def test_which_exceptions_may_be_retried() -> None:
    # By default all but a misfit
    task = Task(typed)
    assert task.may_retry(ValueError())
    assert task.may_retry(SystemExit())
    assert not task.may_retry(Misfit())

    # With a list, only those, and a run that was stopped at its limit
    task = Task(typed, retry_on=(OSError,))
    assert task.may_retry(ConnectionError())
    assert task.may_retry(TimeLimit())
    assert not task.may_retry(ValueError())

    # And never those that are ruled out
    task = Task(typed, retry_on=(OSError,), no_retry_on=(FileNotFoundError, TimeLimit))
    assert task.may_retry(ConnectionError())
    assert not task.may_retry(FileNotFoundError())
    assert not task.may_retry(TimeLimit())


def test_async_tasks_answer_with_a_coroutine() -> None:
    async def task(a: int) -> int:
        return a + 1

    made = Task(task)
    assert made.is_async
    assert asyncio.run(run(made, b'{"a":1}')) == 2


def test_results_become_json_or_a_misfit() -> None:
    def days() -> dict[int, str]: ...  # type: ignore[empty-body]

    assert Task(typed).encode_result(None) == b"null"
    assert Task(typed).encode_result({"a": [1.5]}) == b'{"a":[1.5]}'
    assert Task(days).encode_result({1: "mon"}) == b'{"1":"mon"}'
    for value, expected in (({1: 2}, "the key 1"), (object(), "cannot become JSON"), ("x" * 1_048_576, "1048578 bytes")):
        with pytest.raises(Misfit, match=expected):
            Task(typed).encode_result(value)


def test_two_tasks_of_one_type_are_an_error_naming_both() -> None:
    tasks = Tasks()
    tasks.add(Task(typed, queue="mail"))
    tasks.add(Task(typed, queue="mail"))  # the same function again: a module that was reloaded
    with pytest.raises(NotConfigured, match=r"'typed': .*test_task\.typed and .*test_task\.everything"):
        tasks.add(Task(everything, name="typed"))
    assert tasks.queues == ["default", "mail"]


def test_progress_is_clipped_and_checked() -> None:
    line = NoLine()
    ctx = Context(line=line)
    ctx.progress(-1)
    ctx.progress(40, "half way")
    ctx.progress(1000)
    assert line.said == [(0.0, ""), (40.0, "half way"), (100.0, "")]
    for wrong in (float("nan"), "40"):
        with pytest.raises(InvalidInput, match="number from 0 to 100"):
            ctx.progress(wrong)  # type: ignore[arg-type]
    assert (ctx.cancelled, ctx.cut_off, ctx.deadline) == (False, False, None)
